"""`Transformer`'s state dict under Hugging Face's tensor names, with fused matrices split.

Used to read pretrained weights and for both exports.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..model.config import ModelConfig

LLAMA_NAMES = {
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
}
POST_NORM_NAMES = {
    "attention_post_norm": "model.layers.{}.post_attention_layernorm",
    "feed_forward_norm": "model.layers.{}.pre_feedforward_layernorm",
    "feed_forward_post_norm": "model.layers.{}.post_feedforward_layernorm",
}
GPT2_NAMES = {
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
}
"""transformers' module names by ours; `{}` is the number of the layer."""

NORMS_LESS_ONE = ("gemma3",)
"""Families whose folders (not GGUF files) store the weights of norms less 1."""
UNPREFIXED_GPT2 = ("wte.", "wpe.", "h.", "ln_f.")
"""How names begin in GPT-2 files that lack the prefix `transformer.`, as OpenAI's upload does."""
IGNORED = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Stored buffers that are no weights: the causal mask and the rotary frequencies."""

_NAME = re.compile(r"(?:blocks\.(\d+)\.)?(.+)\.(weight|bias)")


def names_of(config: ModelConfig) -> dict[str, str]:
    """transformers' module names for a family."""
    if config.arch == "gpt2":
        return GPT2_NAMES
    return LLAMA_NAMES | (POST_NORM_NAMES if config.family.post_norm else {})


def unfuse_weights(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of `Transformer` without padded rows, and with fused matrices split.

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
        if config.arch == "gpt2" or fused is None:
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
    them to fill `tensors`. The values are ours, see `NORMS_LESS_ONE`.
    """
    views = rename_tensors(unfuse_weights(config, tensors), names_of(config))
    if config.arch == "gpt2":
        # transformers' GPT-2 layers are Conv1D, which stores the transpose of Linear's matrix.
        views |= {
            name: tensor.T for name, tensor in views.items() if ".h." in name and tensor.ndim == 2
        }
    return views


def shift_norms(config: ModelConfig, name: str, tensor: Tensor, by: float) -> Tensor:
    """`tensor`, with `by` added if it is a norm's weight that is stored less 1."""
    shifted = config.arch in NORMS_LESS_ONE and name.endswith("norm.weight")
    return tensor + by if shifted else tensor


def stored_tensors(config: ModelConfig, files: list[Path]) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor as stored in safetensors, one after the other, without buffers.

    Raises:
        UserError: a file is damaged.
    """
    for file in files:
        with read_errors(file):  # what safetensors raises does not tell it from damage
            file.open("rb").close()
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    if IGNORED.search(name):
                        continue
                    gpt2 = config.arch == "gpt2" and name.startswith(UNPREFIXED_GPT2)
                    yield "transformer." * gpt2 + name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise UserError(
                f"{shown(file)} is not readable as safetensors ({error}); it is damaged or "
                "incomplete. Copy it there again."
            ) from error
