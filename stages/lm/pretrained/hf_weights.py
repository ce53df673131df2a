"""`Transformer`'s state dict under Hugging Face's tensor names, with fused matrices split.

Used to read pretrained weights and for both exports.
"""

import re

from torch import Tensor

from ..model.transformer import ModelConfig

LAYER_NORM_EPSILON = 1e-5
"""Default of torch's LayerNorm; GPT-2 uses the same."""

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
"""transformers' module names by architecture; `{}` is the number of the layer."""

_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


def unfuse_weights(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` without padded rows, and with Qwen3's fused matrices split.

    `attention.qkv` becomes `attention.query`, `.key` and `.value`; `feed_forward.gate_up` becomes
    `.gate` and `.up`. GPT-2's `qkv` stays fused, as in other programs. All results are views.
    """
    size = config.head_size
    heads = [config.heads * size, config.kv_heads * size, config.kv_heads * size]
    stacked = {
        "attention.qkv.": (heads, ("query", "key", "value")),
        "feed_forward.gate_up.": ([config.ff_width] * 2, ("gate", "up")),
    }
    unfused = {}
    for name, tensor in tensors.items():
        if name in ("token_embedding.weight", "head.weight"):
            unfused[name] = tensor[: config.vocab_size]
            continue
        fused = next((key for key in stacked if key in name), None)
        if config.arch != "qwen3" or fused is None:
            unfused[name] = tensor
            continue
        rows, parts = stacked[fused]
        for part, piece in zip(parts, tensor.split(rows), strict=True):
            unfused[name.replace(fused.split(".")[1], part)] = piece
    return unfused


def rename_tensors(tensors: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """The tensors with each module name replaced by `names`; `{}` becomes the layer's number."""
    renamed = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        assert match is not None, name
        layer, module, kind = match.groups()
        renamed[f"{names[module].format(layer)}.{kind}"] = tensor
    return renamed


def huggingface_tensors(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` as transformers names and shapes it.

    All results are views into `tensors`: read them to write a file, or copy a file's tensors into
    them to fill `tensors`.
    """
    views = rename_tensors(unfuse_weights(config, tensors), NAMES[config.arch])
    if config.arch == "gpt2":
        # transformers' GPT-2 layers are Conv1D, which stores the transpose of Linear's matrix.
        views |= {
            name: tensor.T for name, tensor in views.items() if ".h." in name and tensor.ndim == 2
        }
    return views
