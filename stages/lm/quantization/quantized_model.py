"""Weights in few bits: the schemes, and the file that holds them.

`models/trained_model_quantized.pt` is self-contained: shape, tokenizer, provenance, codes and what
they cost. Knows nothing about decoding; `dequantize` gives back the matrices that a scheme stands
for.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.artifact import write_artifact
from ..model.checkpoint import Checkpoint, check_config
from ..model.transformer import ModelConfig, Transformer
from .rans import (
    MOST_PER_BYTE,
    Decode,
    decode_with_numpy,
    order_by_scale,
    pack,
    run_lengths,
    runs_by_scale,
    unpack,
)

KIND = "quantized model"
VERSION = 2
GROUP_SIZE = 64
"""Columns that share a scale where a row has more than one."""

FIRST_BLOCK = "blocks.0."

QuantizedWeight = dict[str, Tensor]
"""A weight: int8 `codes` (rows, columns) and float16 `scales` (rows, 1 or columns / 64), each for
a run of columns; or float16 `values`, where it is not quantized."""


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model as plain values."""

    config: ModelConfig
    scheme: str
    tensors: dict[str, QuantizedWeight]
    """By the names of `Transformer`'s state dict."""
    tokenizer: dict[str, str]
    provenance: dict[str, Any]
    measured: dict[str, float] = field(default_factory=dict)
    """What the scheme cost, as `metrics/quantize.json` has it."""

    def packed(self) -> Tensor:
        """All codes, scales and values as one stream of bytes, see `packing`."""
        return torch.from_numpy(pack([array for array in self._arrays() if len(array)]))

    def _arrays(self) -> list[np.ndarray]:
        arrays = []
        for parts in self.tensors.values():
            if "codes" in parts:
                scales = parts["scales"].numpy().ravel()
                codes = parts["codes"].numpy().view(np.uint8).reshape(len(scales), -1) ^ 128
                arrays += [codes[run].ravel() for run in runs_by_scale(scales, codes.size)]
        # Float16 numbers as their low and their high bytes: exponents are alike, fractions are not.
        for kind in ("scales", "values"):
            halves = [parts[kind].flatten() for parts in self.tensors.values() if kind in parts]
            whole = torch.cat(halves).numpy() if halves else np.empty(0, np.float16)
            arrays += list(whole.astype("<f2").view(np.uint8).reshape(-1, 2).T)
        return arrays

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "config": asdict(self.config),
            "scheme": self.scheme,
            "tokenizer": self.tokenizer,
            "provenance": self.provenance,
            "measured": self.measured,
            "scales_a_row": {
                name: parts["scales"].size(1) if "scales" in parts else 0
                for name, parts in self.tensors.items()
            },
            "packed": self.packed(),
        }
        write_artifact(path, KIND, VERSION, content)

    @classmethod
    def from_content(
        cls, content: dict[str, Any], decode: Decode = decode_with_numpy
    ) -> "QuantizedModel":
        """What `save` wrote.

        Raises:
            LookupError, TypeError, ValueError, RuntimeError: the content is forged. Time and memory
                stay of the order of its size.
        """
        rest = dict(content)
        config = ModelConfig(**rest.pop("config"))
        scales, stream = rest.pop("scales_a_row"), rest.pop("packed")
        if stream.dtype != torch.uint8 or stream.ndim != 1:
            raise ValueError("its codes are no stream of bytes")
        tensors = unpack_tensors(shapes_of(config, len(scales)), scales, stream.numpy(), decode)
        return cls(config=config, tensors=tensors, **rest)

    def dequantized(self) -> dict[str, Tensor]:
        """The state dict of `Transformer` in float32 that the codes stand for."""
        return {name: dequantize(parts) for name, parts in self.tensors.items()}

    def bits_per_weight(self) -> float:
        """Bits stored for each trainable number, scales and tables included, headers not."""
        weights = sum(dequantize(parts).numel() for parts in self.tensors.values())
        return 8 * len(self.packed()) / weights


def shapes_of(config: ModelConfig, tensors: int) -> dict[str, torch.Size]:
    """The shape of every weight of a model, in the order of `Transformer`'s state dict. The model
    must have about so many tensors.

    Raises:
        RuntimeError: no model has this shape and so few tensors.
    """
    check_config(config, tensors)
    with torch.device("meta"):
        one = Transformer(replace(config, layers=1)).state_dict()
    # Blocks are alike, and making them all takes several times as long.
    names = list(one)
    block = [name for name in names if name.startswith(FIRST_BLOCK)]
    before = names.index(block[0])
    shapes = {name: one[name].shape for name in names[:before]}
    for layer in range(config.layers):
        for name in block:
            own = f"blocks.{layer}.{name.removeprefix(FIRST_BLOCK)}"
            shapes[own] = one[name].shape
    return shapes | {name: one[name].shape for name in names[before + len(block) :]}


def unpack_tensors(
    shapes: dict[str, torch.Size], scales: dict[str, int], stream: np.ndarray, decode: Decode
) -> dict[str, QuantizedWeight]:
    """The parts of each weight, from the number of scales that its rows have (0: none).

    Raises:
        LookupError, ValueError: the stream does not hold them.
    """
    if set(scales) != set(shapes):
        raise ValueError("its weights have other names")
    # Told before anything of that size is made; `unpack` knows the rest.
    if sum(shape.numel() for shape in shapes.values()) > MOST_PER_BYTE * len(stream):
        raise ValueError(f"so many weights cannot lie in {len(stream)} bytes")
    coded = {}
    for name, shape in shapes.items():
        count = scales[name]
        allowed = {0, 1, shape[-1] / GROUP_SIZE} if len(shape) == 2 else {0}
        if type(count) is not int or count not in allowed:
            raise ValueError(f"{name} cannot have {count!r} scales a row")
        if count:
            coded[name] = shape
    plain = {name: shape for name, shape in shapes.items() if name not in coded}
    scaled = {name: torch.Size((shape[0], scales[name])) for name, shape in coded.items()}
    sizes = [
        length * (shape.numel() // scaled[name].numel())
        for name, shape in coded.items()
        for length in run_lengths(scaled[name].numel(), shape.numel())
    ]
    numbers = [sum(shape.numel() for shape in halves.values()) for halves in (scaled, plain)]
    sizes += [numbers[0]] * 2 + [numbers[1]] * 2
    arrays = unpack(stream, [size for size in sizes if size], decode)
    *sorted_codes, scale_bytes, value_bytes = np.split(
        arrays, np.cumsum([*(shape.numel() for shape in coded.values()), 2 * numbers[0]])
    )
    stored_scales, stored_values = _halves(scaled, scale_bytes), _halves(plain, value_bytes)
    codes = {}
    for (name, shape), part in zip(coded.items(), sorted_codes, strict=True):
        flat = stored_scales[name].numpy().ravel()
        part ^= 128
        places = np.empty(len(flat), np.intp)
        places[order_by_scale(flat)] = np.arange(len(flat))
        # All codes of a scale as one item: numpy takes these several times faster than rows.
        items = part.view(f"V{shape.numel() // len(flat)}").take(places)
        codes[name] = torch.from_numpy(items.view(np.int8)).view(shape)
    return {
        name: {"codes": codes[name], "scales": stored_scales[name]}
        if name in coded
        else {"values": stored_values[name]}
        for name in shapes
    }


def _halves(shapes: dict[str, torch.Size], stored: np.ndarray) -> QuantizedWeight:
    """Float16 tensors of these shapes, one after the other, from low bytes, then high ones."""
    numbers = torch.from_numpy(stored.reshape(2, -1).T.copy().view("<f2").ravel())
    parts = numbers.split([shape.numel() for shape in shapes.values()]) if shapes else ()
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def quantize_checkpoint(
    checkpoint: Checkpoint, scheme: str, coded: dict[str, QuantizedWeight] | None = None
) -> QuantizedModel:
    """The checkpoint's weights under a scheme: matrices in codes, all else in float16.

    `int8` and `int4` are found here, `f16` has no codes; of any other scheme, `coded` is every
    matrix.
    """
    matrices = {name: weight for name, weight in checkpoint.tensors.items() if weight.ndim == 2}
    if coded is None:
        quantize = {"int8": quantize_int8, "int4": quantize_int4, "f16": None}[scheme]
        coded = {name: quantize(weight) for name, weight in matrices.items()} if quantize else {}
    tensors = {
        name: coded[name] if name in coded else {"values": to_f16(weight)}
        for name, weight in checkpoint.tensors.items()
    }
    return QuantizedModel(
        checkpoint.config, scheme, tensors, checkpoint.tokenizer, checkpoint.provenance
    )


def quantize_int8(weight: Tensor) -> QuantizedWeight:
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


def quantize_int4(weight: Tensor) -> QuantizedWeight:
    """4-bit codes with a float16 scale for 64 columns, or for a row that is no multiple of that.

    The largest weight of a group gets about -8 and so gives the scale its sign, as in llama.cpp's
    Q4_0; of scales around that, the one with the smallest squared error is taken.
    """
    rows, columns = weight.shape
    size = GROUP_SIZE if columns % GROUP_SIZE == 0 else columns
    groups = weight.float().view(-1, size)
    largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    scales = torch.zeros_like(largest, dtype=torch.float16)
    for divisor in torch.arange(-10, -6.4, 0.25).tolist():
        tried = nonzero_f16(largest / divisor)
        error = groups.sub(rounded(groups, tried) * tried.float()).square().sum(1, keepdim=True)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    codes = rounded(groups, scales).to(torch.int8)
    return {"codes": codes.view(rows, columns), "scales": scales.view(rows, -1)}


def rounded(weight: Tensor, scales: Tensor) -> Tensor:
    """The 4-bit codes nearest to `weight`, still in float32."""
    return (weight / scales.float()).round_().clamp_(-8, 7)


def nonzero_f16(scales: Tensor) -> Tensor:
    """`scales` in float16, the smallest number standing for zero."""
    halves = to_f16(scales)
    return torch.where(halves == 0, torch.full_like(halves, 2**-24), halves)


def to_f16(weight: Tensor) -> Tensor:
    """`weight` in float16, the largest finite number standing for any larger one."""
    limit = torch.finfo(torch.float16).max
    return weight.clamp(-limit, limit).to(torch.float16)


def dequantize(parts: QuantizedWeight) -> Tensor:
    """The float32 weight that a quantized weight's parts stand for."""
    if "values" in parts:
        return parts["values"].float()
    codes, scales = parts["codes"], parts["scales"]
    groups = codes.view(*scales.shape, -1).float()
    return (groups * scales.float().unsqueeze(2)).view(codes.shape)
