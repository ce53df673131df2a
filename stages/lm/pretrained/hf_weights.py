"""A model's tensors as other programs hold them: one by one, under their names.

The common ground of both exports and of weights to start from. Knows nothing about files.
"""

import re

from torch import Tensor

from ..model.transformer import ModelConfig

LAYER_NORM_EPSILON = 1e-5
"""Of torch's LayerNorm, and of GPT-2."""

NAMES = {
    "qwen3": {
        "token_embedding": "model.embed_tokens",
        "final_norm": "model.norm",
        "head": "lm_head",
        "attention_norm": "model.layers.{}.input_layernorm",
        "attention.query": "model.layers.{}.self_attn.q_proj",
        "attention.key": "model.layers.{}.self_attn.k_proj",
        "attention.value": "model.layers.{}.self_attn.v_proj",
        "attention.query_norm": "model.layers.{}.self_attn.q_norm",
        "attention.key_norm": "model.layers.{}.self_attn.k_norm",
        "attention.out": "model.layers.{}.self_attn.o_proj",
        "feed_forward_norm": "model.layers.{}.post_attention_layernorm",
        "feed_forward.gate": "model.layers.{}.mlp.gate_proj",
        "feed_forward.up": "model.layers.{}.mlp.up_proj",
        "feed_forward.down": "model.layers.{}.mlp.down_proj",
    },
    "gpt2": {
        "token_embedding": "transformer.wte",
        "position_embedding": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "attention_norm": "transformer.h.{}.ln_1",
        "attention.qkv": "transformer.h.{}.attn.c_attn",
        "attention.out": "transformer.h.{}.attn.c_proj",
        "feed_forward_norm": "transformer.h.{}.ln_2",
        "feed_forward.up": "transformer.h.{}.mlp.c_fc",
        "feed_forward.down": "transformer.h.{}.mlp.c_proj",
    },
}
"""transformers' names of each architecture's tensors."""

_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


def unfuse_weights(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
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


def huggingface_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` as transformers has it; all are views into `tensors`.

    So the same names serve to write weights and, by copying into the views, to read them.
    """
    found = renamed(unfuse_weights(config, tensors), NAMES[config.arch])
    if config.arch == "gpt2":
        # GPT-2's layers in transformers hold their matrices the other way round.
        found |= {
            name: tensor.T for name, tensor in found.items() if ".h." in name and tensor.ndim == 2
        }
    return found
