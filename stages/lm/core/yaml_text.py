"""YAML as DVC reads it: with the same library, in the same way, and nothing that settings lack."""

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from .errors import UserError

MAX_CHARACTERS = 50_000
MAX_BRACKETS = 1_000
MAX_VALUES = 10_000
"""Bounds of time and memory: by aliases, few lines can stand for gigabytes."""
MAX_LEVELS = 20
"""Of lists and groups within each other."""
MAX_BITS = 3_000
"""Of a whole number; Python refuses to print one with several thousand digits."""


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document: dicts with text as keys, lists, text, numbers, bools, None.

    `name` says in messages whose text it is.

    Raises:
        UserError: the text is not YAML, or larger than settings, or has values of other types.
    """
    large = UserError(f"{name} is not readable as YAML: it is larger or deeper than any settings.")
    if len(text) > MAX_CHARACTERS or text.count("[") + text.count("{") > MAX_BRACKETS:
        raise large
    try:
        value = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{name} is not readable as YAML: {line}{error.problem}.") from error
    except Exception as error:  # an impossible date or tag can raise nearly every type
        raise UserError(f"{name} is not readable as YAML: {error}.") from error
    todo: list[tuple[Any, list[str]]] = [(value, [])]
    for count, (one, path) in enumerate(todo):
        if len(path) > MAX_LEVELS or count > MAX_VALUES:
            raise large
        if isinstance(one, int) and one.bit_length() > MAX_BITS:
            raise UserError(f"{name}: {'.'.join(path)} is a number of a thousand digits.")
        odd = []
        if isinstance(one, dict):
            odd = [key for key in one if not isinstance(key, str)]
            todo += [(each, [*path, str(key)]) for key, each in one.items()]
        elif isinstance(one, list):
            todo += [(each, [*path, str(index)]) for index, each in enumerate(one)]
        elif one is not None and not isinstance(one, str | int | float):
            odd = [one]
        if odd:
            raise UserError(
                f"{name}: {'.'.join(path) or 'a key'} holds {str(odd[0])[:80]}, which YAML reads "
                f"as a {type(odd[0]).__name__}; put it in quotes if text is meant."
            )
    return value
