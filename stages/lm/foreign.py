"""What other programs need to know about a model: its tensors one by one, its pattern by name.

The common ground of the Hugging Face and the GGUF export.
"""

import re

from torch import Tensor

from .errors import UserError
from .model import ModelConfig
from .tokenizer import PATTERNS, Tokenizer

LAYER_NORM_EPSILON = 1e-5
"""Of torch's LayerNorm, and of GPT-2."""

PUBLISHED = {
    "gpt2": "gpt-2",
    "r50k_base": "gpt-2",
    "p50k_base": "gpt-2",
    "cl100k_base": "llama-bpe",
    "o200k_base": "gpt-4o",
}
"""Vocabularies of tiktoken whose own pattern cuts as one of `PATTERNS` does, written otherwise."""

_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


def separate_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` without padding, and Qwen3's fused matrices apart.

    `attention.qkv` becomes `attention.query`, `.key` and `.value`; `feed_forward.gate_up` becomes
    `.gate` and `.up`. GPT-2's stay whole: so does everyone else hold them.
    """
    size = config.head_size
    heads = [config.heads * size, config.kv_heads * size, config.kv_heads * size]
    stacked = {
        "attention.qkv.": (heads, ("query", "key", "value")),
        "feed_forward.gate_up.": ([config.ff_width] * 2, ("gate", "up")),
    }
    apart = {}
    for name, tensor in tensors.items():
        if name in ("token_embedding.weight", "head.weight"):
            apart[name] = tensor[: config.vocab_size]
            continue
        fused = next((key for key in stacked if key in name), None)
        if config.arch != "qwen3" or fused is None:
            apart[name] = tensor
            continue
        rows, parts = stacked[fused]
        for part, piece in zip(parts, tensor.split(rows), strict=True):
            apart[name.replace(fused.split(".")[1], part)] = piece
    return apart


def renamed(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Tensors under other names; in these, the layer's number stands for `{}`."""
    found = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        assert match is not None, name
        layer, part, kind = match.groups()
        found[f"{names[part].format(layer)}.{kind}"] = tensor
    return found


def pattern_name(tokenizer: Tokenizer) -> str:
    """The key of `PATTERNS` whose pattern cuts text as this tokenizer does.

    Raises:
        UserError: there is none.
    """
    for name, pattern in PATTERNS.items():
        if tokenizer.pattern == pattern or PUBLISHED.get(tokenizer.name) == name:
            return name
    raise UserError(
        f"the model's vocabulary {tokenizer.name} cuts text by the pattern "
        f"{tokenizer.pattern[:60]!r}, which other programs have no name for, so it cannot be "
        f"exported; train with tokenize.pattern set to one of {', '.join(PATTERNS)}."
    )
