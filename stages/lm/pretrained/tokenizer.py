"""A pretrained model's vocabulary as a `Tokenizer` that gives the same ids.

Reads `tokenizer.json` (the format of Hugging Face's `tokenizers`), or GPT-2's `vocab.json` and
`merges.txt`, or a checkpoint. Special tokens are dropped: their ids come last, and this project
encodes text that looks like one as text. So is Unicode normalization (Qwen's NFC), because decoding
has to give back every text byte for byte. A vocabulary that needs anything else is refused.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..settings.loader import quoted
from ..text.byte_level import byte_characters
from ..text.tokenizer import PATTERNS, Tokenizer
from .files import COPY_AGAIN, OTHER_MODEL, base_json, find_base

PATTERN_OF = {"gpt2": "gpt-2", "qwen3": "qwen2"}
"""The key of `PATTERNS` for a folder without tokenizer.json, by `model_type` in its config.json."""


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE as stored in a Hugging Face folder."""

    path: Path
    """Its file, for messages."""
    tokens: dict[str, int]
    """Ids by token, special ones included; each byte is a printable character (`byte_level.py`)."""
    merges: list[tuple[str, str]]
    """By priority."""
    special: set[int]
    """Ids listed as special or added."""
    ignore_merges: bool
    """Whether a piece of text that is a token becomes this token even if no merges lead to it."""
    pattern: str
    """The regular expression that splits text before merging."""


def base_tokenizer(name: str) -> tuple[Tokenizer, int]:
    """The tokenizer of the model that `init_from` names, and how many special tokens were dropped.

    Raises:
        UserError: it is missing, damaged, or not a vocabulary that tiktoken can reproduce.
    """
    path = find_base(name)
    if path.is_file():
        return _checkpoint_tokenizer(path), 0
    try:
        return _converted(_read_vocabulary(path))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{shown(path)} holds no complete vocabulary ({type(error).__name__}: {error}); copy "
            "its tokenizer.json there again, or set init_from to scratch."
        ) from error


def tokenizer_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings that follow from a pretrained tokenizer, by `section.key`."""
    settings = {"tokenize.tokenizer": "base", "tokenize.vocab_size": tokenizer.vocab_size}
    names = [name for name, pattern in PATTERNS.items() if pattern == tokenizer.pattern]
    return settings | ({"tokenize.pattern": names[0]} if names else {})


def _refused(path: Path, why: str) -> UserError:
    return UserError(f"{shown(path)}: {why}, so its vocabulary cannot be used; {OTHER_MODEL}")


def _checkpoint_tokenizer(path: Path) -> Tokenizer:
    # Imports torch, which the other formats do without.
    from ..core.artifact import CHECKPOINT_FORMAT, read_artifact

    _, content = read_artifact(path, dict([CHECKPOINT_FORMAT]), COPY_AGAIN)
    try:
        stored = content["tokenizer"]
        return Tokenizer.from_text(stored["vocabulary"], stored["pattern"], stored["name"])
    except (LookupError, TypeError, AttributeError, ValueError, UserError) as error:
        raise UserError(
            f"{shown(path)} holds no complete tokenizer ({error}); {COPY_AGAIN}"
        ) from error


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
    _check_merges(tokenizer, vocabulary)
    return tokenizer, left_out


def _from_vocab_json(path: Path, tokens: dict[str, int]) -> Vocabulary:
    merges_file = path.with_name("merges.txt")
    with read_errors(merges_file, "copy it there, or the model's tokenizer.json."):
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    merges = [_pair(line) for line in lines if line and not line.startswith("#version")]
    model_type = base_json(path.with_name("config.json"))["model_type"]
    return Vocabulary(path, tokens, merges, set(), False, PATTERNS[PATTERN_OF[model_type]])


def _from_tokenizer_json(path: Path, document: dict[str, Any]) -> Vocabulary:
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        raise _refused(path, f"it is {quoted(model.get('type'))}, not a byte-level BPE")
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


def _pattern(path: Path, pre_tokenizer: dict[str, Any] | None) -> str:
    """The regular expression of the `pre_tokenizer` of a tokenizer.json.

    Raises:
        UserError: it does more than split by one pattern and map bytes to characters.
    """
    parts = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kinds = [part["type"] for part in parts]
    if kinds not in (["ByteLevel"], ["Split", "ByteLevel"]):
        raise _refused(
            path, f"it splits text by {' and '.join(kinds) or 'nothing'}, not by one pattern"
        )
    if parts[-1].get("add_prefix_space", True):
        raise _refused(path, "it has add_prefix_space true, which adds a space before the text")
    split, by_regex = parts[:-1], parts[-1].get("use_regex", True)
    if bool(split) == by_regex:
        raise _refused(path, f"it splits text by {len(split) + by_regex} patterns, not by one")
    if by_regex:
        return PATTERNS["gpt-2"]
    pattern = split[0]["pattern"].get("Regex")
    if split[0]["behavior"] != "Isolated" or split[0].get("invert") or type(pattern) is not str:
        raise _refused(path, f"it splits text by {quoted(split[0])}")
    if pattern not in PATTERNS.values():
        # Of any other, tiktoken may need years for a line, drop characters, or cut differently.
        raise _refused(path, f"it splits text by {quoted(pattern)}, no pattern that is known here")
    return pattern


def _ranks(vocabulary: Vocabulary) -> tuple[dict[bytes, int], int]:
    """Ids of the ordinary tokens by their bytes, and the number of special tokens after them.

    Raises:
        UserError: a special id is below an ordinary one, or a token holds an unknown character.
    """
    made = {left + right for left, right in vocabulary.merges}
    special = set(vocabulary.special)
    if not vocabulary.ignore_merges:
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
        raise _refused(vocabulary.path, f"{error} in its tokens encodes no byte") from None
    return ranks, len(set(vocabulary.special) | set(vocabulary.tokens.values())) - len(ranks)


def _check_merges(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Refuse merges whose priorities are not the order of ids, because tiktoken merges by id.

    They agree if the last merge of each token, derived from ids alone, is one of those listed.

    Raises:
        UserError: they do not agree.
    """
    ids = vocabulary.tokens
    made = [ids[left + right] for left, right in vocabulary.merges]
    listed = {(ids[left], ids[right]) for left, right in vocabulary.merges}
    unmerged = {
        (own, own)
        for own, token in enumerate(tokenizer.tokens)
        if len(token) == 1 or vocabulary.ignore_merges
    }
    if made != sorted(made) or set(tokenizer.merges()) - listed - unmerged:
        raise _refused(vocabulary.path, "its merges are not in the order of its ids")
