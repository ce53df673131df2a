"""Low-rank adapters (LoRA): train two thin matrices beside each frozen matrix of the blocks.

Hu et al. 2021, arXiv 2106.09685: W becomes W + alpha / rank * B A. B starts at zero, so training
starts from the unchanged model. For the checkpoint the sum is merged into an ordinary matrix.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.transformer import Transformer

TARGETS = {
    "attention": ("attention",),
    "feed_forward": ("feed_forward",),
    "all": ("attention", "feed_forward"),
}
"""Submodules of a block that get adapters, for each value of `train.lora_targets`."""


class LoRALinear(nn.Module):
    """A frozen linear layer with one pair (A, B) for each of the matrices stacked in it.

    `split_sizes` are the rows of these matrices.
    """

    def __init__(self, linear: nn.Linear, split_sizes: list[int], rank: int, alpha: float) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.split_sizes, self.rank, self.scale = split_sizes, rank, alpha / rank
        self.lora_a = nn.Parameter(torch.zeros(len(split_sizes) * rank, linear.in_features))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows), without forming W + B A."""
        low = F.linear(x, self.lora_a).split(self.rank, dim=-1)
        parts = [
            F.linear(*each) for each in zip(low, self.lora_b.split(self.split_sizes), strict=True)
        ]
        return F.linear(x, self.weight, self.bias) + self.scale * torch.cat(parts, dim=-1)

    def merged(self) -> Tensor:
        """The equivalent single matrix (rows, columns)."""
        pairs = zip(self.lora_b.split(self.split_sizes), self.lora_a.split(self.rank), strict=True)
        return self.weight + self.scale * torch.cat([b @ a for b, a in pairs])


def add_adapters(model: Transformer, targets: str, rank: int, alpha: float) -> None:
    """Freeze `model` and add adapters, all zero, to the matrices of its blocks.

    `targets` is a key of `TARGETS`. The names of the frozen weights do not change.
    """
    split_sizes: dict[Tensor, list[int]] = dict(model.block_matrices())
    model.requires_grad_(False)
    for block in model.blocks:
        for part in TARGETS[targets]:
            layer = block.get_submodule(part)
            for name, linear in list(layer.named_children()):
                if isinstance(linear, nn.Linear):
                    adapted = LoRALinear(linear, split_sizes[linear.weight], rank, alpha)
                    layer.register_module(name, adapted)


def adapted_layers(model: Transformer) -> dict[str, LoRALinear]:
    """The layers that have adapters, by their names in the model."""
    return {name: each for name, each in model.named_modules() if isinstance(each, LoRALinear)}


def adapter_matrices(model: Transformer) -> list[nn.Parameter]:
    """Every A and B, in the order of the layers."""
    layers = adapted_layers(model).values()
    return [matrix for layer in layers for matrix in (layer.lora_a, layer.lora_b)]


@torch.no_grad()
def init_adapters(model: Transformer, generator: torch.Generator) -> None:
    """Fill every A from `generator`, normal with variance 1 / columns; every B with zeros."""
    for layer in adapted_layers(model).values():
        drawn = torch.randn(layer.lora_a.shape, generator=generator)
        layer.lora_a.copy_(drawn * layer.lora_a.size(1) ** -0.5)
        layer.lora_b.zero_()


@torch.no_grad()
def merged_weights(model: Transformer) -> dict[str, Tensor]:
    """The state dict with all adapters merged into the weights they adapt."""
    weights = model.state_dict()
    for name, layer in adapted_layers(model).items():
        del weights[f"{name}.lora_a"], weights[f"{name}.lora_b"]
        weights[f"{name}.weight"] = layer.merged()
    return weights
