"""Hugging Face's `config.json` of a GPT-2 or Qwen3 model as a `ModelConfig`.

The keys are those of transformers' `GPT2Config` and `Qwen3Config`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import shown
from ..model.fused import EPSILON
from ..model.transformer import ModelConfig
from ..settings.loader import quoted
from .files import OTHER_MODEL, base_json
from .hf_weights import LAYER_NORM_EPSILON

REQUIRED: dict[str, dict[str, Any]] = {
    "qwen3": {
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "attention_bias": False,
        "use_sliding_window": False,
        "quantization_config": None,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "quantization_config": None,
    },
}
"""Values that `Transformer` implements, by `model_type`. A missing key has the same value, as these
are transformers' defaults."""

SIZES = {
    "qwen3": {
        "context": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "width": "hidden_size",
        "ff_width": "intermediate_size",
        "vocab_size": "vocab_size",
    },
    "gpt2": {
        "context": "n_positions",
        "layers": "n_layer",
        "heads": "n_head",
        "kv_heads": "n_head",
        "width": "n_embd",
        "ff_width": "n_inner",
        "vocab_size": "vocab_size",
    },
}
"""By `model_type`: the key of `config.json` for each size in `ModelConfig`."""


def read_config(path: Path) -> ModelConfig:
    """The model that a `config.json` describes.

    Raises:
        UserError: it is not readable, or describes a model that `Transformer` cannot compute.
    """
    document = base_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{shown(path)} is not a JSON object; copy it there again.")

    def refuse(key: str, needed: str, value: Any = None) -> UserError:
        value = document.get(key) if value is None else value
        return UserError(
            f"{shown(path)}: {key} is {quoted(value)}, but must be {needed}; {OTHER_MODEL}"
        )

    arch = document.get("model_type")
    if not isinstance(arch, str) or arch not in REQUIRED:
        raise refuse("model_type", "gpt2 or qwen3")
    for key, needed in REQUIRED[arch].items():
        if document.get(key, needed) != needed:
            raise refuse(key, quoted(needed))
    tied = document.get("tie_word_embeddings", arch == "gpt2")
    if type(tied) is not bool:
        raise refuse("tie_word_embeddings", "true or false")
    sizes: dict[str, int] = {}
    for field, key in SIZES[arch].items():
        size = document.get(key)
        if size is None and key == "n_inner":
            size = 4 * sizes["width"]
        if type(size) is not int or not 0 < size < 1 << 31:
            raise refuse(key, "a positive whole number")
        sizes[field] = size
    sizes.setdefault("head_size", sizes["width"] // sizes["heads"])
    if arch == "gpt2" and sizes["width"] % sizes["heads"]:
        raise refuse("n_head", f"a divisor of n_embd {sizes['width']}")
    kinds = document.get("layer_types")
    # Compared without a list of as many layers as the file claims.
    every = isinstance(kinds, list) and len(kinds) == sizes["layers"]
    if kinds is not None and not (every and all(kind == "full_attention" for kind in kinds)):
        raise refuse("layer_types", "full_attention in every layer")
    rope_base = _rope_base(document, refuse)
    return ModelConfig(arch=arch, **sizes, tie_embeddings=tied, dropout=0.0, rope_base=rope_base)


def _rope_base(document: dict[str, Any], refuse: Callable[..., UserError]) -> float:
    """The base of the rotary frequencies, under its keys of old and new transformers."""
    rope_base = document.get("rope_theta", ModelConfig.rope_base)
    for key in ("rope_parameters", "rope_scaling"):
        rope = document.get(key) or {}
        if not isinstance(rope, dict):
            raise refuse(key, "a JSON object")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise refuse(key, "of the type default")
        rope_base = rope.get("rope_theta", rope_base)
    if type(rope_base) not in (int, float) or not 1 <= rope_base <= 1e9:
        raise refuse("rope_theta", "a number from 1 to 1e9", rope_base)
    return float(rope_base)
