"""From `params.yaml` to typed settings, or one sentence that says what is wrong with it."""

import dataclasses
import difflib
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol, TypeVar, get_type_hints

import yaml

from ..core.errors import UserError
from ..core.paths import PARAMS


@dataclass(frozen=True)
class Range:
    """The values a number may take, ends included."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}"


@dataclass(frozen=True)
class Choice:
    """The words a text may be."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return "one of " + ", ".join(self.words)


class Section(Protocol):
    """A frozen dataclass that mirrors one section of `params.yaml`."""

    SECTION: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


S = TypeVar("S", bound=Section)
NO_AUTO: Mapping[str, Any] = MappingProxyType({})


def load_section(cls: type[S], path: Path = PARAMS, auto: Mapping[str, Any] = NO_AUTO) -> S:
    """The section of `params.yaml` that `cls` describes.

    `auto` holds what the word stands for, by `section.key`, where a setting may be `auto`.

    Raises:
        UserError: a key is missing, unknown or has a value it cannot have.
    """
    return _build(cls, read_params(path), path.name, auto)


def load_sections(
    classes: list[type[Any]], path: Path = PARAMS, auto: Mapping[str, Any] = NO_AUTO
) -> dict[str, Any]:
    """Every section, by name; a section that no class describes is an error too."""
    document = read_params(path)
    known = [cls.SECTION for cls in classes]
    for name in document:
        if name not in (*known, "recipe", "init_from"):
            raise UserError(f"{path.name}: unknown section {name!r}{_nearest(name, known)}.")
    return {cls.SECTION: _build(cls, document, path.name, auto) for cls in classes}


def read_params(path: Path) -> dict[str, Any]:
    """`params.yaml` as it stands.

    Raises:
        UserError: it is missing, or is not YAML, or holds no sections.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path.name} is missing; it holds every setting. Restore it, for example with "
            f"`git checkout {path.name}`."
        ) from None
    except Exception as error:  # a date or a tag that makes no sense can raise nearly every type
        raise UserError(f"{path.name} is not readable as YAML: {error}.") from error
    if not isinstance(document, dict):
        raise UserError(f"{path.name} must hold sections such as `train:`, each with its keys.")
    return document


def _build(cls: type[S], document: dict[str, Any], file: str, auto: Mapping[str, Any]) -> S:
    section = cls.SECTION
    values = document.get(section)
    if not isinstance(values, dict):
        state = f"is {quoted(values)}, not a group of keys" if section in document else "is missing"
        raise UserError(f"{file}: the section `{section}:` {state}.")
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in names:
            raise UserError(f"{file}: unknown key {section}.{key}{_nearest(str(key), names)}.")
    parsed = {}
    for name in names:
        if name not in values:
            raise UserError(
                f"{file}: {section}.{name} is missing; add it back ({_expected(hints[name])})."
            )
        value, automatic = values[name], auto.get(f"{section}.{name}")
        if value == "auto" and automatic is not None:
            value = automatic
        try:
            parsed[name] = convert(value, hints[name])
        except (ValueError, OverflowError):
            raise UserError(
                f"{file}: {section}.{name} is {quoted(value)}, but must be "
                f"{_expected(hints[name])}{'' if automatic is None else ', or auto'}."
            ) from None
    try:
        return cls(**parsed)
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None


def quoted(value: Any) -> str:
    """A value as messages show it, groups in short: ten lines of YAML can stand for gigabytes."""
    try:
        return repr(value) if isinstance(value, int | str) else reprlib.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _nearest(name: str, known: list[str]) -> str:
    match = difflib.get_close_matches(str(name), known, n=1)
    return f"; did you mean {match[0]!r}?" if match else f"; known are {', '.join(known)}"


def _expected(hint: Any) -> str:
    kind, limits = _parts(hint)
    noun = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
    return f"{noun} {limits}" if isinstance(limits, Range) else str(limits or noun)


def _parts(hint: Any) -> tuple[type, Range | Choice | None]:
    metadata = getattr(hint, "__metadata__", (None,))
    return getattr(hint, "__origin__", hint), metadata[0]


def convert(value: Any, hint: Any) -> Any:
    """A value as its type hint has it.

    Raises:
        ValueError: it cannot be that.
        OverflowError: it is a number beyond all floats.
    """
    kind, limits = _parts(hint)
    if kind is bool or kind is str:
        if not isinstance(value, kind):
            raise ValueError
        if isinstance(limits, Choice) and value not in limits.words:
            raise ValueError
        if isinstance(value, str):
            value.encode()  # "\ud800" is valid YAML, but no text
        return value
    # DVC writes 0.00001 as `1e-05`, which YAML 1.1 (and so PyYAML) reads as text.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    number = float(value)
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    if isinstance(limits, Range) and not limits.low <= number <= limits.high:
        raise ValueError
    return int(number) if kind is int else number
