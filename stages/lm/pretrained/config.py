"""Hugging Face's `config.json` as a `ModelConfig`, by the keys of transformers' own classes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import shown
from ..model.config import FAMILIES, ModelConfig
from ..model.rope import yarn_attention
from ..settings.loader import quoted
from .files import OTHER_MODEL, base_json

MODEL_TYPES = {arch: arch for arch in FAMILIES if arch != "gemma3"}
MODEL_TYPES |= {"gemma3_text": "gemma3", "mistral": "llama"}
"""Our name of the family by `model_type`."""

UNBIASED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
FULL = {"use_sliding_window": False}
REQUIRED: dict[str, dict[str, Any]] = {
    "llama": UNBIASED,
    "mistral": UNBIASED,
    "olmo2": UNBIASED,
    "qwen2": {"hidden_act": "silu"} | FULL,
    "qwen3": UNBIASED | FULL,
    "smollm3": UNBIASED | FULL,
    "gemma3_text": {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
}
"""Values that `Transformer` implements, by `model_type`. A missing key has the same value, as these
are transformers' defaults."""
TIED = ("gpt2", "gemma3_text", "smollm3")
"""Types whose head is tied to the embedding if the file does not say it."""
EPSILON = {"gpt2": 1e-5, "olmo2": 1e-5}
"""The norm's epsilon if the file does not say it; 1e-6 of all others."""

LLAMA_SIZES = {
    "context": "max_position_embeddings",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "width": "hidden_size",
    "head_size": "head_dim",
    "ff_width": "intermediate_size",
    "vocab_size": "vocab_size",
}
GPT2_SIZES = {
    "context": "n_positions",
    "layers": "n_layer",
    "heads": "n_head",
    "kv_heads": "n_head",
    "width": "n_embd",
    "ff_width": "n_inner",
    "vocab_size": "vocab_size",
}
"""The key of `config.json` for each size in `ModelConfig`."""

Refuse = Callable[..., UserError]


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

    kind = document.get("model_type")
    if not isinstance(kind, str) or kind not in MODEL_TYPES:
        raise refuse("model_type", f"one of {', '.join(sorted(MODEL_TYPES))}")
    for key, needed in (REQUIRED[kind] | {"quantization_config": None}).items():
        if document.get(key, needed) != needed:
            raise refuse(key, quoted(needed))
    tied = document.get("tie_word_embeddings", kind in TIED)
    if type(tied) is not bool:
        raise refuse("tie_word_embeddings", "true or false")
    arch = MODEL_TYPES[kind]
    eps_key = "layer_norm_epsilon" if arch == "gpt2" else "rms_norm_eps"
    eps = document.get(eps_key, EPSILON.get(kind, 1e-6))
    if type(eps) is not float or not 0 < eps <= 0.1:
        raise refuse(eps_key, "a number from 0 to 0.1")
    window = document.get("sliding_window") if kind in ("mistral", "gemma3_text") else 0
    if type(window or 0) is not int or (window or 0) < 0:
        raise refuse("sliding_window", "a whole number or null")
    sizes = _sizes(document, kind, refuse)
    rope = {} if arch == "gpt2" else _rope(document, arch, refuse)
    config = ModelConfig(
        arch=arch,
        **sizes,
        tie_embeddings=tied,
        dropout=0.0,
        norm_eps=eps,
        sliding_window=window or 0,
        **rope,
    )
    _check_layers(document, config, refuse)
    return config


def _sizes(document: dict[str, Any], kind: str, refuse: Refuse) -> dict[str, Any]:
    sizes: dict[str, int] = {}
    for field, key in (GPT2_SIZES if kind == "gpt2" else LLAMA_SIZES).items():
        size = document.get(key)
        if size is None:
            if key == "n_inner":
                size = 4 * sizes["width"]
            elif key == "num_key_value_heads" and kind in ("llama", "olmo2"):
                size = sizes["heads"]
            elif key == "head_dim" and kind not in ("qwen3", "gemma3_text"):
                size = sizes["width"] // sizes["heads"]
        if type(size) is not int or not 0 < size < 1 << 31:
            raise refuse(key, "a positive whole number")
        sizes[field] = size
    if kind == "gpt2":
        if sizes["width"] % sizes["heads"]:
            raise refuse("n_head", f"a divisor of n_embd {sizes['width']}")
        sizes["head_size"] = sizes["width"] // sizes["heads"]
    return sizes


def _check_layers(document: dict[str, Any], config: ModelConfig, refuse: Refuse) -> None:
    """Refuse layers that differ from those of the family.

    Raises:
        UserError: they do.
    """
    lists: dict[str, Callable[[int], Any]] = {
        "layer_types": lambda n: "sliding_attention" if config.window(n) else "full_attention",
        "no_rope_layers": lambda n: int(config.rotated(n)),  # 1 where there is rotation
    }
    for key, expected in lists.items():
        found = document.get(key)
        # Compared without a list of as many layers as the file claims.
        every = isinstance(found, list) and len(found) == config.layers
        if found is not None and not (
            every and all(kind == expected(layer) for layer, kind in enumerate(found))
        ):
            usual = "the usual ones of every layer"
            plain = key == "layer_types" and not config.sliding_window
            raise refuse(key, "full_attention in every layer" if plain else usual)
    scale = document.get("query_pre_attn_scalar")
    if config.arch == "gemma3" and scale != config.head_size:
        raise refuse("query_pre_attn_scalar", f"{config.head_size}, the size of a head")


def _rope(document: dict[str, Any], arch: str, refuse: Refuse) -> dict[str, Any]:
    """The fields of `ModelConfig` that say how positions rotate, under old and new keys."""
    base: Any = document.get("rope_theta")
    fields: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        rope = document.get(key) or {}
        if not isinstance(rope, dict):
            raise refuse(key, "a JSON object")
        if "sliding_attention" in rope:
            local, rope = rope["sliding_attention"], rope.get("full_attention") or {}
            expected = FAMILIES[arch].local_rope_base
            if local != {"rope_type": "default", "rope_theta": expected}:
                raise refuse(key, f"of the type default and {expected} in layers with a window")
        base = rope.get("rope_theta", base)
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "linear", "llama3", "yarn"):
            raise refuse(key, "of the type default, linear, llama3 or yarn")
        if rope.get("partial_rotary_factor", 1) != 1 or rope.get("truncate", True) is not True:
            raise refuse(key, "without partial_rotary_factor and truncate")
        if kind != "default":
            fields = {"rope_scaling": kind} | _scaling(rope, kind, document, partial(refuse, key))
    local = document.get("rope_local_base_freq", FAMILIES[arch].local_rope_base)
    if local != FAMILIES[arch].local_rope_base:
        raise refuse("rope_local_base_freq", str(FAMILIES[arch].local_rope_base))
    if base is None and arch not in ("gemma3", "smollm3"):
        base = ModelConfig.rope_base
    if type(base) not in (int, float) or not 1 <= base <= 1e9:
        raise refuse("rope_theta", "a number from 1 to 1e9", base)
    return fields | {"rope_base": float(base)}


def _scaling(
    rope: dict[str, Any], kind: str, document: dict[str, Any], refuse: Callable[[str], UserError]
) -> dict[str, Any]:
    def number(key: str, default: Any = None) -> float:
        value = rope.get(key)
        value = default if value is None else value
        if type(value) not in (int, float) or not 0 < value < 1 << 31:
            raise refuse(f"one with a positive number as {key}")
        return float(value)

    found: dict[str, Any] = {"rope_factor": number("factor")}
    if kind == "linear":
        return found
    original = "original_max_position_embeddings"
    default = document.get("max_position_embeddings") if kind == "llama3" else None
    found["rope_original_context"] = int(number(original, default))
    if kind == "llama3":
        low, high = number("low_freq_factor"), number("high_freq_factor")
        return found | {"rope_low": low, "rope_high": high}
    if rope.get("mscale") or rope.get("mscale_all_dim"):
        raise refuse("without mscale")
    return found | {
        "rope_low": number("beta_slow", 1),
        "rope_high": number("beta_fast", 32),
        "rope_attention": number("attention_factor", yarn_attention(found["rope_factor"])),
    }
