"""Weights in few bits: the schemes, and the file that holds them.

`models/trained_model_quantized.pt` is self-contained: shape, tokenizer, provenance and codes.
Knows nothing about decoding; `dequantize` gives back the matrices that a scheme stands for.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifact import write_artifact
from .checkpoint import Checkpoint
from .model import ModelConfig

KIND = "quantized model"
VERSION = 1


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model as plain values."""

    config: ModelConfig
    scheme: str
    tensors: dict[str, dict[str, Tensor]]
    """For each weight its parts: `codes` and `scales`, or `values` where it is not quantized."""
    tokenizer: dict[str, str]
    provenance: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "config": asdict(self.config),
            "scheme": self.scheme,
            "tokenizer": self.tokenizer,
            "provenance": self.provenance,
            "tensors": self.tensors,
        }
        write_artifact(path, KIND, VERSION, content)

    def dequantized(self) -> dict[str, Tensor]:
        """The state dict of `Transformer` in float32 that the codes stand for."""
        return {name: dequantize(parts) for name, parts in self.tensors.items()}

    def bits_per_weight(self) -> float:
        """Bits stored for each trainable number, scales included, file headers not."""
        stored = sum(
            part.numel() * part.element_size()
            for parts in self.tensors.values()
            for part in parts.values()
        )
        weights = sum(
            (parts["codes"] if "codes" in parts else parts["values"]).numel()
            for parts in self.tensors.values()
        )
        return 8 * stored / weights


def quantize_checkpoint(checkpoint: Checkpoint, scheme: str) -> QuantizedModel:
    """The checkpoint's weights under a scheme: `int8` (matrices only) or `f16`."""
    tensors = {}
    for name, weight in checkpoint.tensors.items():
        quantizes = scheme == "int8" and weight.ndim == 2
        tensors[name] = quantize_int8(weight) if quantizes else {"values": to_f16(weight)}
    return QuantizedModel(
        checkpoint.config, scheme, tensors, checkpoint.tokenizer, checkpoint.provenance
    )


def quantize_int8(weight: Tensor) -> dict[str, Tensor]:
    """Symmetric 8-bit codes (rows, columns) with one float16 scale a row: weight ~ code * scale.

    The scale is rounded up to float16 before the codes are found, so that its rounding costs
    nothing and no code overflows.
    """
    exact = weight.float().abs().amax(dim=1, keepdim=True) / 127
    scales = exact.clamp(min=2**-24).to(torch.float16)
    infinity = torch.full_like(scales, torch.inf)
    scales = torch.where(scales.float() < exact, torch.nextafter(scales, infinity), scales)
    codes = (weight.float() / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return {"codes": codes, "scales": scales}


def to_f16(weight: Tensor) -> Tensor:
    """`weight` in float16, the largest finite number standing for any larger one."""
    limit = torch.finfo(torch.float16).max
    return weight.clamp(-limit, limit).to(torch.float16)


def dequantize(parts: dict[str, Tensor]) -> Tensor:
    """The float32 weight that a quantized weight's parts stand for.

    Raises:
        ValueError: there is not one scale for each row of codes.
    """
    if "values" in parts:
        return parts["values"].float()
    codes, scales = parts["codes"], parts["scales"]
    # A forged row times a forged column would be a matrix larger than any memory.
    if codes.ndim != 2 or scales.shape != (codes.size(0), 1):
        raise ValueError(f"{tuple(scales.shape)} scales for {tuple(codes.shape)} codes")
    return codes.float() * scales.float()
