"""`models/trained_model_quantized.pt`: a quantized model in one self-contained file.

It holds the model's shape, tokenizer, provenance, entropy-coded weights and measured loss.
"""

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.artifact import write_artifact
from ..model.checkpoint import Checkpoint, check_config
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from .rans import (
    MAX_SYMBOLS_PER_BYTE,
    Decode,
    Encode,
    decode_with_numpy,
    encode_with_numpy,
    order_by_scale,
    pack,
    run_lengths,
    runs_by_scale,
    unpack,
)
from .schemes import (
    GROUP_SIZE,
    QuantizedWeight,
    StoredWeight,
    dequantize,
    quantize_int4,
    quantize_int8,
    to_f16,
)

KIND = "quantized model"
VERSION = 3
FIRST_BLOCK = "blocks.0."


@dataclass(frozen=True)
class QuantizedModel:
    """A quantized model: its weights as codes and scales, and what else the file holds."""

    config: ModelConfig
    scheme: str
    tensors: dict[str, StoredWeight]
    """By the names of `Transformer`'s state dict."""
    tokenizer: dict[str, str]
    provenance: dict[str, Any]
    measured: dict[str, float] = field(default_factory=dict)
    """What the scheme cost, as `metrics/quantize.json` has it."""
    encode: Encode = field(default=encode_with_numpy, repr=False)
    """What makes the stream; all give the same bytes."""

    @cached_property
    def packed(self) -> Tensor:
        """All codes, scales and float16 values as one stream, (bytes,) uint8, see `rans.pack`."""
        return torch.from_numpy(
            pack([array for array in self._arrays() if len(array)], self.encode)
        )

    def _arrays(self) -> list[np.ndarray]:
        arrays = []
        quantized = [w for w in self.tensors.values() if isinstance(w, QuantizedWeight)]
        for weight in quantized:
            scales = weight.scales.numpy().ravel()
            codes = weight.codes.numpy().view(np.uint8).reshape(len(scales), -1) ^ 128
            arrays += [codes[run].ravel() for run in runs_by_scale(scales, codes.size)]
        # Low and high bytes of float16 numbers in two arrays, each with its own frequency table:
        # high bytes (sign, exponent) repeat and compress well, low bytes are close to random.
        scales_only = [weight.scales for weight in quantized]
        values = [weight for weight in self.tensors.values() if isinstance(weight, Tensor)]
        for halves in (scales_only, values):
            flat = [half.flatten() for half in halves]
            whole = torch.cat(flat).numpy() if flat else np.empty(0, np.float16)
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
                name: weight.scales.size(1) if isinstance(weight, QuantizedWeight) else 0
                for name, weight in self.tensors.items()
            },
            "packed": self.packed,
        }
        write_artifact(path, KIND, VERSION, content)

    @classmethod
    def from_content(
        cls, content: dict[str, Any], decode: Decode = decode_with_numpy
    ) -> "QuantizedModel":
        """The model in an artifact's content, as `save` wrote it.

        Raises:
            LookupError, TypeError, ValueError, RuntimeError: the content is forged. Even then, time
                and memory stay proportional to its size.
        """
        rest = dict(content)
        config = ModelConfig(**rest.pop("config"))
        scales, stream = rest.pop("scales_a_row"), rest.pop("packed")
        if stream.dtype != torch.uint8 or stream.ndim != 1:
            raise ValueError("its codes are no stream of bytes")
        tensors = unpack_tensors(shapes_of(config, len(scales)), scales, stream.numpy(), decode)
        return cls(config=config, tensors=tensors, **rest)

    def dequantized(self) -> dict[str, Tensor]:
        """The state dict of `Transformer` in float32: codes times scales."""
        return {name: dequantize(weight) for name, weight in self.tensors.items()}

    def bits_per_weight(self) -> float:
        """Size of the stream in bits per trainable number: codes, scales, frequency tables."""
        count = sum(weight.shape.numel() for weight in self.tensors.values())
        return 8 * len(self.packed) / count


def shapes_of(config: ModelConfig, tensors: int) -> dict[str, torch.Size]:
    """The shape of every weight of a model, in the order of `Transformer`'s state dict.

    `tensors`, the number of weights in the file, bounds the layers of a forged configuration.

    Raises:
        RuntimeError: `config` is invalid, or has more layers than `tensors`.
    """
    check_config(config, tensors)
    with torch.device("meta"):
        one = Transformer(replace(config, layers=1)).state_dict()
    # The shapes of one block are repeated: building all blocks takes several times as long.
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
) -> dict[str, StoredWeight]:
    """Decode the weights of these `shapes` from a stream of bytes, uint8.

    `scales` is the number of scales per row of each weight; 0 means that it is stored as float16.

    Raises:
        LookupError, ValueError: the stream does not hold these weights.
    """
    if set(scales) != set(shapes):
        raise ValueError("its weights have other names")
    # Refused before anything of that size is allocated; `unpack` makes the exact check.
    if sum(shape.numel() for shape in shapes.values()) > MAX_SYMBOLS_PER_BYTE * len(stream):
        raise ValueError(f"so many weights cannot lie in {len(stream)} bytes")
    coded = _coded(shapes, scales)
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
        rank = np.empty(len(flat), np.intp)  # of each scale, in the order that the codes are in
        rank[order_by_scale(flat)] = np.arange(len(flat))
        # All codes of a scale as one item: numpy gathers items several times faster than rows.
        items = part.view(f"V{shape.numel() // len(flat)}").take(rank)
        codes[name] = torch.from_numpy(items.view(np.int8)).view(shape)
    return {
        name: QuantizedWeight(codes[name], stored_scales[name])
        if name in coded
        else stored_values[name]
        for name in shapes
    }


def _coded(shapes: dict[str, torch.Size], scales: dict[str, int]) -> dict[str, torch.Size]:
    """The shapes of the weights that have scales; raises ValueError for an impossible number."""
    coded = {}
    for name, shape in shapes.items():
        count = scales[name]
        allowed = {0, 1, shape[-1] / GROUP_SIZE} if len(shape) == 2 else {0}
        if type(count) is not int or count not in allowed:
            raise ValueError(f"{name} cannot have {count!r} scales a row")
        if count:
            coded[name] = shape
    return coded


def _halves(shapes: dict[str, torch.Size], stored: np.ndarray) -> dict[str, Tensor]:
    """Consecutive float16 tensors of these shapes, from all low bytes, then all high bytes."""
    numbers = torch.from_numpy(stored.reshape(2, -1).T.copy().view("<f2").ravel())
    parts = numbers.split([shape.numel() for shape in shapes.values()]) if shapes else ()
    return {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}


def quantize_checkpoint(
    checkpoint: Checkpoint,
    scheme: str,
    coded: dict[str, QuantizedWeight] | None = None,
    encode: Encode = encode_with_numpy,
) -> QuantizedModel:
    """The checkpoint's weights in a scheme: matrices quantized, all else in float16.

    `coded` holds the quantized matrices. Without it they are computed here: `scheme` must then be
    `int8`, `int4` or `f16`, which leaves matrices in float16 too.
    """
    matrices = {name: weight for name, weight in checkpoint.tensors.items() if weight.ndim == 2}
    if coded is None:
        quantize = {"int8": quantize_int8, "int4": quantize_int4, "f16": None}[scheme]
        coded = {name: quantize(weight) for name, weight in matrices.items()} if quantize else {}
    tensors: dict[str, StoredWeight] = {
        name: coded[name] if name in coded else to_f16(weight)
        for name, weight in checkpoint.tensors.items()
    }
    return QuantizedModel(
        checkpoint.config,
        scheme,
        tensors,
        checkpoint.tokenizer,
        checkpoint.provenance,
        encode=encode,
    )
