"""Writes a GGUF file, the format of llama.cpp and of programs built on it.

The file has key-value metadata (architecture, sizes, tokenizer) and the tensors. The format is
specified in `docs/gguf.md` of ggml; the `gguf` package of llama.cpp does the encoding, and the key
and tensor names are those of its `gguf/constants.py`.
"""

import base64
import json
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import quantize
from torch import Tensor

from ..core.errors import UserError
from ..inference.loading import LoadedModel
from ..model.config import ModelConfig
from ..model.rope import yarn_attention
from ..pretrained.gguf_weights import ROPE_FREQUENCIES, gguf_tensors, interleaved, rope_divisors
from ..quantization.schemes import to_f16
from ..text.byte_level import printed_merges, printed_tokens
from ..text.conversation import end_token
from ..text.hf_tokenizer import BYTE_NAME, SPACE, HFTokenizer
from ..text.interface import Tokenizer
from ..text.tokenizer import BytePairTokenizer
from .pattern_names import pattern_name

KINDS = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Kind.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}
"""Number formats of matrices: the type of the tensors, and `general.file_type` of the file."""


def write_gguf(loaded: LoadedModel, path: Path, kind: str) -> None:
    """Write a model to a new file, with its matrices in the number format `kind`, a key of `KINDS`.

    Raises:
        UserError: llama.cpp has no name for the tokenizer's pattern.
    """
    config = loaded.config
    writer = gguf.GGUFWriter(path, config.arch)
    add_shape(writer, config)
    add_tokenizer(writer, loaded.tokenizer, loaded.opening)
    writer.add_file_type(KINDS[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    if config.rope_scaling == "llama3":
        writer.add_tensor(ROPE_FREQUENCIES, rope_divisors(config).numpy())
    for name, tensor in gguf_tensors(config, loaded.model.state_dict()).items():
        stored = stored_kind(name, tensor, kind, config)
        writer.add_tensor(
            name, stored_numbers(interleaved(config, name, tensor), stored), raw_dtype=stored
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Add the architecture's sizes to the metadata."""
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.ff_width)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.family.layer_norm:
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if config.family.learned_positions:
        return
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_base)
    if config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.rope_scaling in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(config.rope_scaling))
        writer.add_rope_scaling_factor(config.rope_factor)
    if config.rope_scaling == "yarn":
        writer.add_rope_scaling_orig_ctx_len(config.rope_original_context)
        writer.add_rope_scaling_yarn_beta_slow(config.rope_low)
        writer.add_rope_scaling_yarn_beta_fast(config.rope_high)
        # llama.cpp multiplies it by the usual value.
        writer.add_rope_scaling_attn_factors(
            config.rope_attention / yarn_attention(config.rope_factor)
        )


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, opening: list[int]) -> None:
    """Add the vocabulary, what cuts text and merges, the chat template and the end to the metadata.

    `opening` are the tokens before every text, one at most.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    if isinstance(tokenizer, HFTokenizer):
        printed, merges = tokenizer.printed(), tokenizer.printed_merges()
    else:
        assert isinstance(tokenizer, BytePairTokenizer)
        printed = printed_tokens(tokenizer.spelled)
        merges = printed_merges(printed, tokenizer.merges())
        for token, name in tokenizer.control.items():
            printed[token] = name
    # llama.cpp wants a name for gaps too.
    writer.add_token_list([name or f"[UNUSED{token}]" for token, name in enumerate(printed)])
    kind = tokenizer_model(tokenizer)
    writer.add_tokenizer_model(kind)
    writer.add_token_types(token_types(tokenizer, printed, kind))
    if kind == "gpt2":
        writer.add_tokenizer_pre(pattern_name(tokenizer))
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_add_space_prefix(False)
    else:
        assert isinstance(tokenizer, HFTokenizer)
        writer.add_token_scores(
            merge_scores(printed, merges) if kind == "llama" else add_unigram(writer, tokenizer)
        )
        writer.add_add_space_prefix(puts_space_first(tokenizer))
    if tokenizer.chat.template:
        writer.add_chat_template(tokenizer.chat.template)
    end = end_token(tokenizer)
    if end is None:
        # A model of a text has no end token, but without one here llama.cpp takes token 11, which
        # is the comma in GPT-2's vocabulary. The byte 0xFF never occurs in UTF-8 text.
        end = tokenizer.encode(b"\xff")[0]
    begin = opening[0] if opening else tokenizer.named(tokenizer.chat.bos_token)
    writer.add_bos_token_id(end if begin is None else begin)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(bool(opening))
    writer.add_add_eos_token(False)


def tokenizer_model(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for what makes tokens of text.

    `gpt2` merges bytes, `llama` merges characters (SentencePiece's BPE), and `t5` takes the tokens
    with the highest sum of scores (its unigram models).
    """
    if not isinstance(tokenizer, HFTokenizer):
        return "gpt2"
    kinds = {part["type"] for part in tokenizer.parts("decoder")}
    if "ByteLevel" not in kinds and not tokenizer.printed_merges():
        return "t5"
    return "llama" if "ByteFallback" in kinds else "gpt2"


def merge_scores(printed: list[str], merges: list[tuple[str, str]]) -> list[float]:
    """Scores of tokens of which the one with the highest is merged first."""
    ranks = {"".join(pair): rank for rank, pair in reversed([*enumerate(merges)])}
    return [-float(ranks.get(token, len(merges))) for token in printed]


def add_unigram(writer: gguf.GGUFWriter, tokenizer: HFTokenizer) -> list[float]:
    """Add what a unigram vocabulary needs besides its scores, which are returned.

    Raises:
        UserError: llama.cpp would make other tokens of some texts.
    """
    model = json.loads(tokenizer.to_text())["model"]
    parts = [*tokenizer.parts("normalizer"), *tokenizer.parts("pre_tokenizer")]
    for part in parts:
        if part["type"] == "Precompiled":
            writer.add_precompiled_charsmap(base64.b64decode(part["precompiled_charsmap"]))
        elif part["type"] not in ("Metaspace", "Prepend") and part.get("content") != SPACE:
            raise UserError(
                f"the model's vocabulary {tokenizer.name} changes text by {part['type']}, which "
                "llama.cpp does not do for unigram vocabularies; ask for the format huggingface."
            )
    writer.add_unk_token_id(model["unk_id"])
    writer.add_remove_extra_whitespaces(False)
    scores = [float(score) for _, score in model["vocab"]]
    return scores + [0.0] * (tokenizer.vocab_size - len(scores))


def puts_space_first(tokenizer: HFTokenizer) -> bool:
    """Whether a space is put before a text."""
    parts = [*tokenizer.parts("normalizer"), *tokenizer.parts("pre_tokenizer")]
    return any(
        part["type"] == "Prepend" or part.get("prepend_scheme", "never") != "never"
        for part in parts
    )


def token_types(tokenizer: Tokenizer, printed: list[str], kind: str) -> list[gguf.TokenType]:
    """llama.cpp's types of all tokens: control tokens have one of their own, and so have gaps."""
    added = tokenizer.added if isinstance(tokenizer, HFTokenizer) else ()

    def type_of(token: int, name: str) -> gguf.TokenType:
        if token in tokenizer.control:
            return gguf.TokenType.CONTROL
        if not tokenizer.tokens[token]:
            return gguf.TokenType.UNUSED
        if token in added:
            return gguf.TokenType.USER_DEFINED
        is_byte = kind != "gpt2" and BYTE_NAME.fullmatch(name)
        return gguf.TokenType.BYTE if is_byte else gguf.TokenType.NORMAL

    return [type_of(token, name) for token, name in enumerate(printed)]


def stored_kind(name: str, tensor: Tensor, kind: str, config: ModelConfig) -> Kind:
    """The number format of one tensor in a file of `kind`, following llama.cpp's conventions.

    Vectors and GPT-2's position embedding are float32. In a 4-bit file the output matrix has 8
    bits. A matrix whose rows are no multiple of the block size of 32 is float16.
    """
    if kind == "f32" or tensor.ndim == 1 or name.startswith("position"):
        return Kind.F32
    if kind != "f16" and tensor.size(1) % 32:
        return Kind.F16
    head = "token_embd" if config.tie_embeddings else "output"
    if kind == "q4_0" and name == f"{head}.weight":
        return Kind.Q8_0
    return KINDS[kind][0]


def stored_numbers(tensor: Tensor, kind: Kind) -> np.ndarray:
    """A tensor in a number format; quantized rows as uint8, (rows, bytes per row)."""
    if kind == Kind.F16:
        return to_f16(tensor).cpu().numpy()
    numbers = tensor.float().cpu().contiguous().numpy()
    return numbers if kind == Kind.F32 else quantize(numbers, kind)
