"""The vocabulary of the weights to start from, with the same ids, as a tokenizer of ours.

Special tokens are left out: they stand at the end, and to us text that looks like one is text. So
is Unicode normalization (Qwen's NFC): we encode every text so that it can be had back.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import shown
from ..settings.loader import quoted
from ..text.byte_level import byte_characters
from ..text.tokenizer import PATTERNS, Tokenizer
from .files import REMEDY, base_json, find_base

PATTERN_OF = {"gpt2": "gpt-2", "qwen3": "qwen2"}
"""How a vocabulary without a tokenizer.json cuts text, by the `model_type` in config.json."""
PROBE = (
    "It's 12345 tokens:\r\n\r\n\tжил, 我们 في नमस्ते  café e\u0301 🙂\u200d\x00\x7f\u2028 "
    "HELLO__world ... \n \n  end   "
)
"""A pattern must leave nothing of this out; tiktoken drops what no part of it matches."""
_OF_WORDS = re.compile(r"\\[wWbB]")
"""To tiktoken's regular expressions the marks of Hindi are parts of words, to those of Hugging Face
not."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as a Hugging Face folder holds it."""

    path: Path
    """The file to name in messages."""
    tokens: dict[str, int]
    """Printed as GPT-2 does (`byte_level.py`), special ones included."""
    merges: list[tuple[str, str]]
    special: set[int]
    """Ids that are said to be special or added."""
    whole: bool
    """Whether tokens that no merge makes are found too."""
    pattern: str


def base_tokenizer(name: str) -> tuple[Tokenizer, int]:
    """The tokenizer of the weights that `init_from` names, and how many special tokens it loses.

    Raises:
        UserError: it is missing, damaged, or not one that tiktoken can be.
    """
    path = find_base(name)
    if path.is_file():
        return _own_tokenizer(path), 0
    try:
        return _converted(_read_vocabulary(path))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{shown(path)} holds no whole vocabulary ({type(error).__name__}: {error}); bring its "
            "tokenizer.json again, or set init_from to scratch."
        ) from error


def tokenizer_values(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a base's tokenizer decides of the settings, by `section.key`."""
    known = [name for name, pattern in PATTERNS.items() if pattern == tokenizer.pattern]
    values = {"tokenize.tokenizer": "base", "tokenize.vocab_size": tokenizer.vocab_size}
    return values | ({"tokenize.pattern": known[0]} if known else {})


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"{shown(path)}: {why}, so its vocabulary cannot be used; {REMEDY}")


def _own_tokenizer(path: Path) -> Tokenizer:
    from ..core.artifact import read_artifact  # imports torch, which the other bases do without

    _, content = read_artifact(path, {"checkpoint": 1})
    try:
        parts = content["tokenizer"]
        return Tokenizer.from_text(parts["vocabulary"], parts["pattern"], parts["name"])
    except (LookupError, TypeError, AttributeError, ValueError, UserError) as error:
        raise UserError(f"{shown(path)} holds no whole tokenizer ({error}); {REMEDY}") from error


def _read_vocabulary(folder: Path) -> Vocabulary:
    path = folder / "tokenizer.json"
    if path.exists():
        return _from_tokenizer_json(path, base_json(path))
    path = folder / "vocab.json"
    return _from_vocab_json(path, base_json(path))


def _converted(vocabulary: Vocabulary) -> tuple[Tokenizer, int]:
    ranks, left_out = _ranks(vocabulary)
    try:
        tokenizer = Tokenizer(ranks, vocabulary.pattern, f"base {vocabulary.path.parent.name}")
    except UserError as error:
        raise UserError(f"{shown(vocabulary.path)} (init_from): {error}") from error
    except ValueError as error:  # tiktoken's
        why = f"its pattern {vocabulary.pattern[:60]!r} cannot be used ({error})"
        raise _refused(vocabulary.path, why) from error
    _check_merges(tokenizer, vocabulary)
    if tokenizer.decode(tokenizer.encode(PROBE.encode())) != PROBE.encode():
        why = f"its pattern {vocabulary.pattern[:60]!r} leaves characters out"
        raise _refused(vocabulary.path, why)
    return tokenizer, left_out


def _from_vocab_json(path: Path, tokens: dict[str, int]) -> Vocabulary:
    merges_file = path.with_name("merges.txt")
    if not merges_file.is_file():
        raise UserError(
            f"{shown(merges_file)} is missing; bring it, or the model's tokenizer.json instead."
        )
    lines = merges_file.read_text(encoding="utf-8").split("\n")
    merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
    model_type = base_json(path.with_name("config.json"))["model_type"]
    return Vocabulary(path, tokens, merges, set(), False, PATTERNS[PATTERN_OF[model_type]])


def _from_tokenizer_json(path: Path, document: dict[str, Any]) -> Vocabulary:
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise _refused(path, f"it is {quoted(model.get('type'))}, not a BPE of bytes")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise _refused(path, f"its model has {key} {quoted(model[key])}")
    normalizer = document.get("normalizer")
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(path, f"its normalizer {quoted(normalizer['type'])} changes the text")
    return Vocabulary(
        path,
        model["vocab"],
        [_pair(merge) for merge in model["merges"]],
        {added["id"] for added in document.get("added_tokens") or []},
        bool(model.get("ignore_merges")),
        _pattern(path, document.get("pre_tokenizer")),
    )


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _pattern(path: Path, cutter: dict[str, Any] | None) -> str:
    """The regular expression by which a tokenizer.json cuts text."""
    parts = [] if cutter is None else cutter.get("pretokenizers", [cutter])
    kinds = [part["type"] for part in parts]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _refused(
            path, f"it cuts text by {' and '.join(kinds) or 'nothing'}, not by one pattern to bytes"
        )
    if parts[-1].get("add_prefix_space", True):
        raise _refused(path, "it has add_prefix_space true, which puts a space before the text")
    split, by_regex = parts[:-1], parts[-1].get("use_regex", True)
    if bool(split) == by_regex:
        raise _refused(path, f"it cuts text by {len(split) + by_regex} patterns, not by one")
    if by_regex:
        return PATTERNS["gpt-2"]
    pattern = split[0]["pattern"].get("Regex")
    if split[0]["behavior"] != "Isolated" or split[0].get("invert") or type(pattern) is not str:
        raise _refused(path, f"it cuts text by {quoted(split[0])}")
    if _OF_WORDS.search(pattern):
        why = f"its pattern {pattern[:60]!r} speaks of words, which are others to tiktoken"
        raise _refused(path, why)
    return pattern


def _ranks(vocabulary: Vocabulary) -> tuple[dict[bytes, int], int]:
    """The ordinary tokens' ids, and how many special ones come after them."""
    made = {left + right for left, right in vocabulary.merges}
    special = set(vocabulary.special)
    if not vocabulary.whole:
        special |= {
            number
            for token, number in vocabulary.tokens.items()
            if len(token) > 1 and token not in made
        }
    ordinary = {token: n for token, n in vocabulary.tokens.items() if n not in special}
    before = [number for number in special if number < len(ordinary)]
    if before:
        names = {number: token for token, number in vocabulary.tokens.items()}
        raise _refused(
            vocabulary.path,
            f"its special token {quoted(names.get(min(before)))} has the id {min(before)}, before "
            f"the last ordinary token's {max(ordinary.values())}",
        )
    characters = byte_characters()
    try:
        ranks = {bytes(characters[char] for char in token): n for token, n in ordinary.items()}
    except KeyError as error:
        raise _refused(vocabulary.path, f"{error} in its tokens stands for no byte") from None
    return ranks, len(set(vocabulary.special) | set(vocabulary.tokens.values())) - len(ranks)


def _check_merges(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Refuse merges that are not in the order of the ids, by which tiktoken merges.

    They are if each token's last merge, found by the ids alone, is one of those that make it.

    Raises:
        UserError: they are not.
    """
    ids = vocabulary.tokens
    made = [ids[left + right] for left, right in vocabulary.merges]
    listed = {(ids[left], ids[right]) for left, right in vocabulary.merges}
    bytes_or_whole = {
        (own, own)
        for own, token in enumerate(tokenizer.tokens)
        if len(token) == 1 or vocabulary.whole
    }
    if made != sorted(made) or set(tokenizer.merges()) - listed - bytes_or_whole:
        raise _refused(vocabulary.path, "its merges are not in the order of its ids")
