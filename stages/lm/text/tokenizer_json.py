"""What a tokenizer.json may ask of `tokenizers`: a forged one must not hang it or fill the memory.

The format is the one that `tokenizers.Tokenizer.to_str` writes.
"""

import base64
import re
from collections.abc import Iterator
from typing import Any

MAX_TEXT = 64 << 20
"""Characters of a tokenizer.json; Gemma 3's, the largest of its kind, has 33 million."""
MAX_PATTERN = 2000
MAX_REPLACEMENT = 64
"""Characters, or bytes, that a normalizer may put in place of one match."""

NORMALIZERS = {
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Strip", "Nmt"),
    *("Prepend", "Replace", "Precompiled"),
}
PRE_TOKENIZERS = {
    *("Split", "ByteLevel", "Metaspace", "Digits", "Punctuation", "UnicodeScripts"),
    *("Whitespace", "WhitespaceSplit"),
}
POST_PROCESSORS = {"TemplateProcessing", "ByteLevel", "RobertaProcessing", "BertProcessing"}
DECODERS = {"ByteLevel", "Metaspace", "ByteFallback", "Replace", "Fuse", "Strip"}
SECTIONS = {
    "normalizer": ("normalizers", NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", PRE_TOKENIZERS),
    "decoder": ("decoders", DECODERS),
    "post_processor": ("processors", POST_PROCESSORS),
}
"""Parts of a tokenizer.json: the key of a sequence's members, and the types that are known."""

# A pattern is reduced to its shape by what each of its parts is.
_PARTS = {
    "<": r"\(\?[=!]",  # looks ahead
    "(": r"\(\?[imsx-]{1,4}:|\(\?:",
    "#": r"\{\d(?:,\d)?\}",  # so many times
    "*": r"\{\d,\}",
    # One character: a class, a property, a code, an escape, itself.
    "c": r"\[\^?\]?(?:\\.|[^\]\\\[]|\[[^\]\\\[]*\])*\]"
    r"|\\[pP]\{\^?[\w ]{1,40}\}"
    r"|\\x\{[0-9A-Fa-f]{1,6}\}|\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}"
    r"|\\[sSdDwWnrtfv]|\\[^\w\s]|[^\\\[\]()|?*+{}^$]",
}
_PART = re.compile("|".join(f"({form})" for form in _PARTS.values()))
_FIXED = r"(?:c(?:#\+?|\?\+?)?|g(?:\?\+?)?)"
_RUN = r"c[*+][?+]?(?:[cg]\?\+?)*"
_GROUP = re.compile(rf"\((?:{_FIXED}|\|)+\)")
_ALTERNATIVE = re.compile(rf"{_FIXED}*(?:{_RUN}(?:{_RUN}|c)?\$?)?")


def components(document: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The members of a section of `SECTIONS`, in order.

    Raises:
        ValueError: one is of a type that is not known.
    """
    members_key, known = SECTIONS[section]
    component = document.get(section)
    if component is None:
        return []
    members = component[members_key] if component["type"] == "Sequence" else [component]
    for member in members:
        if member["type"] not in known:
            raise ValueError(f"its {section} is {member['type']!r}, which is not known here")
    return list(members)


def check_document(document: dict[str, Any]) -> None:
    """Refuse what takes `tokenizers` unbounded time or memory, and what loses text.

    Raises:
        ValueError: says what, as the end of a sentence.
        LookupError, TypeError, AttributeError: a part is missing or of another type.
    """
    model = document["model"]
    # Files of older versions name no type for BPE.
    if model.get("type", "BPE") not in ("BPE", "Unigram"):
        raise ValueError(f"it is {model.get('type')!r}, neither BPE nor Unigram")
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ValueError(f"its model has {key} {model[key]!r}")
    for section in SECTIONS:
        for component in components(document, section):
            _check_component(component)
    if not {"ByteLevel", "Metaspace", "Replace"} & {
        component["type"] for component in components(document, "decoder")
    }:
        raise ValueError("its decoder does not say how tokens become text")


def _check_component(component: dict[str, Any]) -> None:
    pattern = component.get("pattern")
    if isinstance(pattern, dict) and (regex := pattern.get("Regex")) is not None:
        check_pattern(regex)
    for added in _added_texts(component):
        if len(added) > MAX_REPLACEMENT:
            raise ValueError(f"it puts {len(added):,} characters in place of one")


def _added_texts(component: dict[str, Any]) -> Iterator[str | bytes]:
    for key in ("content", "prepend", "replacement"):
        yield component.get(key) or ""
    if component["type"] == "Precompiled":
        # SentencePiece's `precompiled_charsmap`: the size of a trie, the trie, and replacements.
        blob = base64.b64decode(component["precompiled_charsmap"])
        yield from blob[4 + int.from_bytes(blob[:4], "little") :].split(b"\0")


def check_pattern(pattern: str) -> None:
    """Refuse a regular expression that could take more than quadratic time.

    Each alternative may end in two parts of unlimited length, each a repeated class of characters.
    Groups are not repeated, and only one character is looked ahead for. Nearly all published
    patterns are so.

    Raises:
        ValueError: it is not of this form.
    """
    kinds = "".join(_PARTS)
    shape = _PART.sub(lambda part: kinds[(part.lastindex or 0) - 1], pattern[: MAX_PATTERN + 1])
    shape = shape.replace("<c)", "")
    while (inner := _GROUP.sub("g", shape)) != shape:
        shape = inner
    simple = all(_ALTERNATIVE.fullmatch(part) for part in shape.split("|"))
    if not simple or len(pattern) > MAX_PATTERN:
        raise ValueError(
            f"it splits text by {pattern[:200]!r}, which could take years for some texts"
        )
