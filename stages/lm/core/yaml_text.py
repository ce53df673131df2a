"""YAML as DVC reads it, or not at all.

DVC records settings by the rules of YAML 1.2: `010` is ten and `yes` is text. PyYAML has those of
1.1, where they are eight and true, so it only splits the text into events here. Refused is what
settings can do without and programs read differently: dates, tags, aliases, merge keys.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml

from .errors import UserError

MOST_CHARACTERS = 100_000
"""Of a text; this many are read in about a second."""
MOST_DIGITS = 1_000
"""Of a number; Python refuses to print one with several thousand."""
MOST_LEVELS = 20
"""Of lists and groups within each other."""

_WORDS = {
    spelling: value
    for word, value in (("true", True), ("false", False), ("null", None))
    for spelling in (word, word.capitalize(), word.upper())
} | {"": None, "~": None}
_INTEGER = re.compile(r"(?!_)[-+]?(0b[01_]+|0o[0-7_]+|0x[\da-fA-F_]+|[\d_]+)", re.ASCII)
_FLOAT = re.compile(
    r"[-+]?\d[\d_]*(\.[\d_]*([eE][-+]?\d+)?|[eE][-+]?\d+)"
    r"|[-+]?\.([\d_]+([eE][-+]\d+)?|inf|Inf|INF)"
    r"|\.(nan|NaN|NAN)",
    re.ASCII,
)
_BASES = {"0b": 2, "0o": 8, "0x": 16}
_DATE = re.compile(r"\d{4}-(\d\d-\d\d|\d\d?-\d\d?([Tt]|[ \t]+)[\d:.+\-Z \t]+)", re.ASCII)
_ODD = re.compile("[\x85\u2028\u2029]|^%|^[.]{3}(?!\\S)", re.MULTILINE)
"""Line ends of YAML 1.1 alone, directives, and ends of documents before the end of the text."""


class _RefusedError(Exception):
    pass


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document: dicts with text as keys, lists, text, numbers, bools, None.

    `name` says in messages whose text it is.

    Raises:
        UserError: the text is not YAML, or has what DVC might read differently.
    """
    try:
        if len(text) > MOST_CHARACTERS:
            raise _RefusedError(
                f"it has more than {MOST_CHARACTERS:,} characters, which no settings need"
            )
        if odd := _ODD.search(text):
            lines = text.count("\n", 0, odd.start()) + 1
            raise _RefusedError(f"line {lines}: {odd.group()!a} is not read here; remove it")
        return _document(text)
    except _RefusedError as error:
        problem = str(error)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}" if mark else ""
        problem = f"not readable as YAML{place}: {error.problem}"
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # "\U99999999": no character
        problem = f"not readable as YAML: {error}"
    raise UserError(f"{name}: {problem}.")


def _document(text: str) -> Any:
    events: Iterator[Any] = yaml.parse(text, yaml.SafeLoader)
    next(events)
    if isinstance(next(events), yaml.StreamEndEvent):
        return None
    value = _value(next(events), events, ())
    next(events)
    if not isinstance(next(events), yaml.StreamEndEvent):
        raise _RefusedError("it holds several documents, begun by `---`; leave one")
    return value


def _value(event: Any, events: Iterator[Any], path: tuple[str, ...]) -> Any:
    """The value that begins with `event`, of the key at `path`."""
    if isinstance(event, yaml.AliasEvent):
        raise _refused(event, path, f"*{event.anchor} is not read here; write the value itself")
    if event.tag is not None:
        raise _refused(event, path, f"the tag {event.tag} is not read here; remove it")
    if len(path) > MOST_LEVELS:
        raise _refused(event, path[:3], "it has too many lists or groups within each other")
    if isinstance(event, yaml.ScalarEvent):
        try:
            return _plain(event.value) if event.implicit[0] else event.value
        except ValueError:
            problem = f"{event.value[:80]} is a date, a merge or no number; put text in quotes"
            raise _refused(event, path, problem) from None
    if isinstance(event, yaml.SequenceStartEvent):
        found: list[Any] = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            found.append(_value(event, events, (*path, str(len(found)))))
        return found
    return _group(events, path)


def _group(events: Iterator[Any], path: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        key = _value(event, events, (*path, "?"))
        if not isinstance(key, str):
            raise _refused(event, path, f"the key {str(key)[:80]} is not text; put it in quotes")
        if key in found:
            raise _refused(event, (*path, key), "this key is there twice; remove one of the two")
        end = event.end_mark
        if re.match(r":[][{},]", end.buffer[end.pointer : end.pointer + 2]):
            # The key of `{a:}` is `a` in YAML 1.1, and `a:` in 1.2.
            raise _refused(event, (*path, key), "put a space after the colon")
        found[key] = _value(next(events), events, (*path, key))
    return found


def _plain(word: str) -> Any:
    """What a word without quotes stands for.

    Raises:
        ValueError: it stands for a date or a merge, or looks like a number and is none.
    """
    if word in _WORDS:
        return _WORDS[word]
    number = word.replace("_", "").lower()
    if _INTEGER.fullmatch(word) and len(word) > MOST_DIGITS:
        raise ValueError
    if _INTEGER.fullmatch(word):
        return int(number, _BASES.get(number.lstrip("+-")[:2], 10))
    if _FLOAT.fullmatch(word):
        return float(re.sub(r"\.(inf|nan)", r"\1", number))
    if word in ("=", "<<") or _DATE.fullmatch(word):
        raise ValueError
    return word


def _refused(event: Any, path: tuple[str, ...], problem: str) -> _RefusedError:
    key = f", {'.'.join(path)[:200]}" if path else ""
    return _RefusedError(f"line {event.start_mark.line + 1}{key}: {problem}")
