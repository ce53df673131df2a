"""Reads sections of `params.yaml` into dataclasses, or says in one sentence what is wrong.

Each field of a section's dataclass is annotated with its type and, where it has limits, a `Range`
or a `Choice`: `epochs: Annotated[int, Range(1, 100_000)]`.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import PARAMS
from ..core.yaml_text import MAX_CHARACTERS, parse_yaml


@dataclass(frozen=True)
class Range:
    """The numbers a setting may be, ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Choice:
    """The words a setting may be."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


class Section(Protocol):
    """A frozen dataclass with a field for each key of one section of `params.yaml`.

    Its `__post_init__` raises `ValueError` for values that contradict each other.
    """

    SECTION: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


S = TypeVar("S", bound=Section)
EMPTY: Mapping[str, Any] = MappingProxyType({})


def load_section(cls: type[S], path: Path = PARAMS, auto: Mapping[str, Any] = EMPTY) -> S:
    """The section of `params.yaml` that `cls` describes.

    `auto` holds the values that replace the word `auto`, by `section.key`.

    Raises:
        UserError: a key is missing, unknown or has a value it cannot have.
    """
    return _section(cls, read_params(path), path.name, auto)


def load_sections(
    classes: list[type[Any]], path: Path = PARAMS, auto: Mapping[str, Any] = EMPTY
) -> dict[str, Any]:
    """All sections, by name.

    Raises:
        UserError: as `load_section`, or a section is unknown.
    """
    document = read_params(path)
    known = [cls.SECTION for cls in classes]
    for name in document:
        if name not in (*known, "recipe", "init_from"):
            raise UserError(f"{path.name}: unknown section {name!r}{_nearest(name, known)}")
    return {cls.SECTION: _section(cls, document, path.name, auto) for cls in classes}


def read_params(path: Path) -> dict[str, Any]:
    """The contents of `params.yaml`, unchecked.

    Raises:
        UserError: it is missing, cannot be read as DVC reads it, or holds no sections.
    """
    missing = f"it holds every setting. Restore it, for example with `git checkout {path.name}`."
    try:
        with read_errors(path, missing), path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path.name} is not in UTF-8 ({error}); save it in UTF-8.") from error
    document = parse_yaml(text, path.name)
    if not isinstance(document, dict):
        raise UserError(f"{path.name} must hold sections such as `train:`, each with its keys.")
    return document


def _section(cls: type[S], document: dict[str, Any], file: str, auto: Mapping[str, Any]) -> S:
    section = cls.SECTION
    values = document.get(section)
    if not isinstance(values, dict):
        state = f"is {quoted(values)}, not a group of keys" if section in document else "is missing"
        raise UserError(f"{file}: the section `{section}:` {state}.")
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(f"{file}: unknown key {section}.{key}{_nearest(str(key), names)}")
    converted = {}
    for name in names:
        key, hint = f"{section}.{name}", hints[name]
        if name not in values:
            raise UserError(f"{file}: {key} is missing; add it back ({_expected(hint)}).")
        value = values[name]
        if value == "auto":
            value = auto.get(key, value)
        try:
            converted[name] = convert(value, hint)
        except (ValueError, OverflowError):
            or_auto = ", or auto" if key in auto else ""
            raise UserError(
                f"{file}: {key} is {quoted(value)}, but must be {_expected(hint)}{or_auto}."
            ) from None
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def quoted(value: Any) -> str:
    """A value for a message."""
    try:
        return repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(known)}."


def _expected(hint: Any) -> str:
    kind, limits = _type_and_limits(hint)
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    return f"{noun} {limits}" if isinstance(limits, Range) else str(limits or noun)


def _type_and_limits(hint: Any) -> tuple[type, Range | Choice | None]:
    """`int` and the `Range` of `Annotated[int, Range(...)]`; `int` and None of `int`."""
    metadata = getattr(hint, "__metadata__", (None,))
    return getattr(hint, "__origin__", hint), metadata[0]


def convert(value: Any, hint: Any) -> Any:
    """A value from YAML as the type that a field is annotated with, checked against its limits.

    Raises:
        ValueError: it has another type, or is outside the limits.
        OverflowError: it is a number beyond all floats.
    """
    kind, limits = _type_and_limits(hint)
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ValueError
        if isinstance(limits, Choice) and value not in limits.words:
            raise ValueError
        if isinstance(value, str):
            value.encode()  # refuses "\ud800", which is valid YAML but half a character
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    if isinstance(limits, Range) and not limits.low <= number <= limits.high:
        raise ValueError
    return int(number) if kind is int else number
