"""The tokenizer in a GGUF file as a tokenizer.json.

A GGUF file has the tokens, their types, merges or scores, and the name of the pattern (`pre`); what
belongs to a name is in llama.cpp's source (`llama-vocab.cpp`). Scores become merges as transformers
makes them of SentencePiece's models.
"""

from collections.abc import Collection
from typing import Any

from ..text.chat import Chat
from ..text.hf_tokenizer import SPACE
from ..text.tokenizer import PATTERNS

CONTROL, USER_DEFINED, UNUSED, BYTE = 3, 4, 5, 6
"""Token types of llama.cpp (`llama_token_type`); the others are 1 (normal) and 2 (unknown)."""

SMOLLM = "smollm"
PATTERN_OF_PRE = {
    **{name: name for name in ("gpt-2", "llama-bpe", "qwen2", "gpt-4o")},
    **dict.fromkeys(("default", "olmo", "phi-2", "jina-en", "gigachat", "mpt"), "gpt-2"),
    **dict.fromkeys(("llama3", "llama-v3", "smaug-bpe", "dbrx"), "llama-bpe"),
    **dict.fromkeys(("deepseek-r1-qwen", "megrez"), "qwen2"),
    **dict.fromkeys((SMOLLM, "starcoder", "refact", "command-r", "codeshell"), "gpt-2"),
}
"""The key of `PATTERNS` for each value of `tokenizer.ggml.pre`."""
LLAMA3 = ("llama-bpe", "llama3", "llama-v3")
"""Of those, the ones that put a token before every text, if nothing else is said."""
SINGLE_DIGITS = (SMOLLM, "starcoder", "refact", "command-r", "codeshell")
"""Of those, the ones that make every digit a piece before the pattern applies."""
IGNORE_MERGES = "llama-bpe"
"""Llama 3's pieces that are tokens become these tokens even if no merges lead to them."""


def tokenizer_document(metadata: dict[str, Any]) -> dict[str, Any]:
    """The content of a tokenizer.json for the metadata of a GGUF file.

    Raises:
        ValueError: it is a kind that is not known; the message ends a sentence.
        LookupError, TypeError, AttributeError: the metadata are not whole.
    """
    kind = metadata["tokenizer.ggml.model"]
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    named = {
        group: [token for token, own in zip(tokens, types, strict=True) if own in group]
        for group in ((CONTROL, UNUSED), (USER_DEFINED,))
    }
    if kind == "gpt2":
        merges = [merge.split(" ") for merge in metadata["tokenizer.ggml.merges"]]
        pre = metadata.get("tokenizer.ggml.pre", "default")
        document = byte_level_document(vocabulary, merges, pre, *named.values())
        return document | _opening(metadata, pre in LLAMA3)
    if kind == "llama":
        document = _document(vocabulary, *named.values()) | _sentencepiece(vocabulary, metadata)
        return document | _opening(metadata, True)
    raise ValueError(f"its tokenizer.ggml.model is {kind!r}, neither gpt2 nor llama")


def chat_in(metadata: dict[str, Any]) -> Chat:
    """The chat template of the metadata of a GGUF file, and the names of the tokens it may use."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ids = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    names = ("" if token is None else tokens[token] for token in ids)
    return Chat(str(metadata.get("tokenizer.chat_template", "")), *names)


def byte_level_document(
    vocabulary: dict[str, int],
    merges: list[list[str]],
    pre: str,
    special: Collection[str],
    other: Collection[str] = (),
) -> dict[str, Any]:
    """The content of a tokenizer.json for byte pairs; `other` added tokens are no special ones.

    Raises:
        ValueError: what belongs to the name `pre` is not known.
    """
    if pre not in PATTERN_OF_PRE:
        raise ValueError(
            f"its tokenizer.ggml.pre is {pre!r}, none of {', '.join(sorted(PATTERN_OF_PRE))}"
        )
    name = PATTERN_OF_PRE[pre]
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    split["pattern"] = {"Regex": PATTERNS[name]}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pieces: list[dict[str, Any]] = [split, byte_level | {"use_regex": False}]
    if pre in SINGLE_DIGITS:
        pieces = [{"type": "Digits", "individual_digits": True}, *pieces]
    return _document(vocabulary, special, other) | {
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pieces},
        "decoder": byte_level | {"use_regex": True},
        "model": {
            **{"type": "BPE", "vocab": vocabulary, "merges": merges},
            "ignore_merges": name == IGNORE_MERGES,
        },
    }


def _document(
    vocabulary: dict[str, int], special: Collection[str], other: Collection[str]
) -> dict[str, Any]:
    added = [
        {
            **{"id": vocabulary[token], "content": token, "special": token not in other},
            **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
        }
        for token in sorted([*special, *other], key=vocabulary.__getitem__)
    ]
    return {"version": "1.0", "added_tokens": added, "post_processor": None}


def _opening(metadata: dict[str, Any], usual: bool) -> dict[str, Any]:
    """What puts a token before every text, where llama.cpp does; `usual` if nothing says so."""
    token = metadata.get("tokenizer.ggml.bos_token_id")
    if token is None or not metadata.get("tokenizer.ggml.add_bos_token", usual):
        return {}
    name = metadata["tokenizer.ggml.tokens"][token]
    first = {"SpecialToken": {"id": name, "type_id": 0}}
    texts = [{"Sequence": {"id": each, "type_id": 0}} for each in "AB"]
    special = {name: {"id": name, "ids": [int(token)], "tokens": [name]}}
    how = {"single": [first, texts[0]], "pair": [first, *texts], "special_tokens": special}
    return {"post_processor": {"type": "TemplateProcessing"} | how}


def _sentencepiece(vocabulary: dict[str, int], metadata: dict[str, Any]) -> dict[str, Any]:
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    space = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, space]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **{"type": "BPE", "vocab": vocabulary, "merges": _merges_of_scores(metadata)},
            "byte_fallback": BYTE in metadata["tokenizer.ggml.token_type"],
            **{"fuse_unk": True, "unk_token": metadata["tokenizer.ggml.tokens"][unknown]},
        },
    }


def _merges_of_scores(metadata: dict[str, Any]) -> list[list[str]]:
    """Every pair of tokens that together are a token, the highest score first."""
    names = ("tokens", "scores", "token_type")
    listed = zip(*(metadata[f"tokenizer.ggml.{name}"] for name in names), strict=True)
    scores = {
        token: (score, -number)
        for number, (token, score, kind) in enumerate(listed)
        if kind in (1, USER_DEFINED)
    }
    pairs = [
        (token[:cut], token[cut:])
        for token in scores
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]
    return [list(pair) for pair in sorted(pairs, key=lambda p: scores["".join(p)], reverse=True)]
