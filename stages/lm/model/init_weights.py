"""Random weights before training, as GPT-2 draws them or as Qwen3 is best started here."""

import math

import torch

from .transformer import Transformer


@torch.no_grad()
def init_weights(model: Transformer, generator: torch.Generator) -> None:
    """Fill the weights from `generator`.

    Matrices are normal with a standard deviation of 0.02 in GPT-2 and of width^-1/2 in Qwen3.
    Matrices that write into the residual stream start smaller: GPT-2 divides by sqrt(2 * layers);
    Qwen3 starts them and an untied head at zero, so that the first prediction is uniform (as muP's
    readout and speed-run GPTs do).
    """
    config = model.config
    gpt2 = config.arch == "gpt2"
    std = 0.02 if gpt2 else config.width**-0.5
    into_residual = 0.02 / math.sqrt(2 * config.layers) if gpt2 else 0.0
    for name, parameter in model.named_parameters():
        if "norm" in name:
            continue
        if name.endswith("bias"):
            parameter.zero_()
            continue
        matrix_std = std
        if name.endswith(("out.weight", "down.weight")):
            matrix_std = into_residual
        elif name == "head.weight":
            matrix_std = 0.02 if gpt2 else 0.0
        elif "embedding" in name and not gpt2 and config.tie_embeddings:
            matrix_std = 0.02
        # Drawn where the generator is, on the CPU: the same numbers for every device.
        parameter.copy_(torch.empty(parameter.shape).normal_(0, matrix_std, generator=generator))
