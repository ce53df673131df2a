"""A GGUF file's metadata as a `ModelConfig`, and its tensors under the names of llama.cpp.

The keys and names are those of `gguf/constants.py` of llama.cpp's `gguf` package.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from torch import Tensor

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..model.config import FAMILIES, ModelConfig
from ..model.rope import scaled_frequencies, yarn_attention
from ..settings.loader import quoted
from .files import OTHER_MODEL
from .gguf_reader import GGUF, read_gguf
from .hf_weights import rename_tensors, unfuse_weights

NAMES = {
    "token_embedding": "token_embd",
    "position_embedding": "position_embd",
    "final_norm": "output_norm",
    "head": "output",
    "attention_norm": "blk.{}.attn_norm",
    "attention_post_norm": "blk.{}.post_attention_norm",
    "attention.qkv": "blk.{}.attn_qkv",
    "attention.query": "blk.{}.attn_q",
    "attention.key": "blk.{}.attn_k",
    "attention.value": "blk.{}.attn_v",
    "attention.query_norm": "blk.{}.attn_q_norm",
    "attention.key_norm": "blk.{}.attn_k_norm",
    "attention.out": "blk.{}.attn_output",
    "feed_forward_norm": "blk.{}.ffn_norm",
    "feed_forward_post_norm": "blk.{}.post_ffw_norm",
    "feed_forward.gate": "blk.{}.ffn_gate",
    "feed_forward.up": "blk.{}.ffn_up",
    "feed_forward.down": "blk.{}.ffn_down",
}
"""llama.cpp's module names, for all families; `{}` is the number of the layer."""

INTERLEAVED = ("llama", "smollm3")
"""Families whose rotated pairs are neighbours in a GGUF file: (2 i, 2 i + 1) instead of
(i, i + S/2)."""
ROPE_FREQUENCIES = "rope_freqs.weight"
"""What Llama 3's rotary frequencies are divided by, (S / 2,)."""
LLAMA3: dict[str, Any] = {"rope_original_context": 8192, "rope_low": 1.0, "rope_high": 4.0}
"""The numbers of every Llama 3 model, of which a GGUF file tells the factor alone."""
UNSUPPORTED = ("expert_count", "final_logit_softcapping", "attn_logit_softcapping")
"""Keys of what no family here has."""


NUMBERS = {Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1}
NUMBERS |= {Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS}
"""Number formats of tensors that are read: those of published files."""


def read_tensor(file: GGUF, name: str) -> Tensor:
    """A tensor in float32, decoded from its number format.

    Raises:
        UserError: it is in another format, or not whole.
    """
    stored = file.tensors[name]
    kind = next((kind for kind in NUMBERS if kind == stored.kind), None)
    if kind is None:
        known = {int(kind): kind.name for kind in Kind}
        raise UserError(
            f"{shown(file.path)}: {name[:80]} is stored as {known.get(stored.kind, stored.kind)}, "
            f"but only {', '.join(sorted(kind.name for kind in NUMBERS))} can be read; "
            f"{OTHER_MODEL}"
        )
    per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
    count = math.prod(stored.shape)
    size = count // per_block * bytes_per_block
    if stored.shape[-1] % per_block or stored.offset + size > file.size:
        raise UserError(
            f"{shown(file.path)}: {name[:80]} is not whole; the file is damaged or incomplete. "
            "Copy it there again."
        )
    with read_errors(file.path), file.path.open("rb") as data:
        data.seek(stored.offset)
        codes = np.frombuffer(data.read(size), np.uint8)
    with np.errstate(all="ignore"):  # of forged scales; values are checked later
        numbers = dequantize(codes, kind).astype(np.float32)
    return torch.from_numpy(numbers.reshape(stored.shape))


class _Metadata:
    """The keys of a file's own architecture."""

    def __init__(self, file: GGUF) -> None:
        self.path, self.values = file.path, file.metadata
        arch = file.metadata.get("general.architecture")
        self.arch: str = arch if isinstance(arch, str) else ""
        if self.arch not in FAMILIES:
            raise self.refused("general.architecture", f"one of {', '.join(FAMILIES)}")

    def refused(self, key: str, needed: str) -> UserError:
        value = quoted(self.values.get(key))
        return UserError(
            f"{shown(self.path)}: {key} is {value}, but must be {needed}; {OTHER_MODEL}"
        )

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        key = f"{self.arch}.{key}"
        value = self.values.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            what = {int: "a whole number, equal in all layers", float: "a number", str: "a text"}
            raise self.refused(key, what[kind])
        # A float32 that stands for a decimal number, such as 1e-5.
        return float(f"{value:.6g}") if kind is float else value

    def need(self, key: str, needed: int, what: str = "") -> None:
        """Refuse another value than `needed`, which a missing key has."""
        if (self.values.get(f"{self.arch}.{key}") or needed) != needed:
            raise self.refused(f"{self.arch}.{key}", f"{needed}{what}")


def gguf_config(file: GGUF) -> ModelConfig:
    """The model that a GGUF file's metadata describes.

    Raises:
        UserError: it is none that `Transformer` can compute.
    """
    metadata = _Metadata(file)
    arch, get = metadata.arch, metadata.get
    family, width = FAMILIES[arch], get("embedding_length", int)
    heads = get("attention.head_count", int)
    head_size = get("attention.key_length", int, width // max(1, heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        metadata.need(key, head_size, ", the size of a head")
    for key in UNSUPPORTED:
        metadata.need(key, 0)
    if not family.global_every and arch != "llama":
        metadata.need("attention.sliding_window", 0)
    if arch == "gemma3" and get("block_count", int) == 62:  # the only one that scales otherwise
        raise metadata.refused("gemma3.block_count", "that of a smaller Gemma 3")
    if "token_embd.weight" not in file.tensors:
        raise UserError(f"{shown(file.path)} has no tensor token_embd.weight; {OTHER_MODEL}")
    norm = "layer_norm" if family.layer_norm else "layer_norm_rms"
    config = ModelConfig(
        arch=arch,
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        context=get("context_length", int),
        layers=get("block_count", int),
        heads=heads,
        kv_heads=get("attention.head_count_kv", int, heads),
        head_size=head_size,
        width=width,
        ff_width=get("feed_forward_length", int),
        tie_embeddings="output.weight" not in file.tensors,
        dropout=0.0,
        norm_eps=get(f"attention.{norm}_epsilon", float),
        sliding_window=get("attention.sliding_window", int, 0),
        **_rope(metadata),
    )
    return _llama3(file, config) if ROPE_FREQUENCIES in file.tensors else config


def _rope(metadata: _Metadata) -> dict[str, Any]:
    """The fields of `ModelConfig` that say how positions rotate."""
    get = metadata.get
    rope = {"rope_base": get("rope.freq_base", float, ModelConfig.rope_base)}
    kind = get("rope.scaling.type", str, "none")
    if kind == "none":
        return rope
    if kind not in ("linear", "yarn"):
        raise metadata.refused(f"{metadata.arch}.rope.scaling.type", "none, linear or yarn")
    factor = get("rope.scaling.factor", float)
    rope |= {"rope_scaling": kind, "rope_factor": factor}
    if kind == "yarn":
        usual, scaled = yarn_attention(factor), get("rope.scaling.attn_factor", float, 1.0)
        rope |= {
            "rope_original_context": get("rope.scaling.original_context_length", int),
            "rope_low": get("rope.scaling.yarn_beta_slow", float, 1.0),
            "rope_high": get("rope.scaling.yarn_beta_fast", float, 32.0),
            "rope_attention": scaled * usual,
        }
    return rope


def _llama3(file: GGUF, config: ModelConfig) -> ModelConfig:
    """The configuration with Llama 3's rotary scaling.

    Raises:
        UserError: the file's divisors are not those of Llama 3.
    """
    divisors = read_tensor(file, ROPE_FREQUENCIES)
    factor = divisors.max().item() if divisors.numel() else 1.0
    scaled = replace(config, rope_scaling="llama3", rope_factor=round(factor, 4), **LLAMA3)
    if config.rope_scaling or not _same(divisors, rope_divisors(scaled)):
        raise UserError(
            f"{shown(file.path)}: the rotary frequencies in {ROPE_FREQUENCIES} are not those of "
            f"Llama 3; {OTHER_MODEL}"
        )
    return scaled


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3)


def rope_divisors(config: ModelConfig) -> Tensor:
    """What a scaled model's rotary frequencies are divided by, (S / 2,)."""
    return scaled_frequencies(replace(config, rope_scaling="")) / scaled_frequencies(config)


def gguf_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` as llama.cpp names it: views, without `interleaved`."""
    return rename_tensors(unfuse_weights(config, tensors), NAMES)


def interleaved(config: ModelConfig, name: str, tensor: Tensor, *, undo: bool = False) -> Tensor:
    """A tensor of a GGUF file with its rows in the order of `INTERLEAVED`, or put back from it."""
    if config.arch not in INTERLEAVED or (".attn_q." not in name and ".attn_k." not in name):
        return tensor
    pairs = (config.head_size // 2, 2) if undo else (2, config.head_size // 2)
    put: Tensor = tensor.unflatten(0, (-1, *pairs)).transpose(1, 2).reshape(tensor.shape)
    return put


def stored_gguf_tensors(config: ModelConfig, path: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor, float32, one after the other, with heads as `Transformer` has them.

    Raises:
        UserError: the file is damaged.
    """
    file = read_gguf(path)
    for name in file.tensors:
        if name != ROPE_FREQUENCIES:
            tensor = read_tensor(file, name)
            fits = tensor.ndim and tensor.size(0) % config.head_size == 0
            yield name, interleaved(config, name, tensor, undo=True) if fits else tensor
