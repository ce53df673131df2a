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


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document: dicts with text as keys, lists, text, numbers, bools, None.

    `name` says in messages whose text it is.

    Raises:
        UserError: the text is not YAML, or larger than settings, or has values of other types.
    """
    if len(text) > MAX_CHARACTERS or text.count("[") + text.count("{") > MAX_BRACKETS:
        raise UserError(f"{name} is larger than any settings; put less into it.")
    try:
        value = YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{name} is not readable as YAML: {line}{error.problem}.") from error
    except Exception as error:  # an impossible date or tag can raise nearly every type
        raise UserError(f"{name} is not readable as YAML: {error}.") from error
    todo, count = [(value, 0)], 0
    while todo:
        one, level = todo.pop()
        count += 1
        if level > MAX_LEVELS or count > MAX_VALUES:
            raise UserError(f"{name} is larger or deeper than any settings; put less into it.")
        if isinstance(one, dict):
            values = list(one.values())
            odd = [key for key in one if not isinstance(key, str)]
        elif isinstance(one, list):
            values, odd = one, []
        else:
            values, odd = [], [] if one is None or isinstance(one, str | int | float) else [one]
        if odd:
            raise UserError(
                f"{name} holds {str(odd[0])[:80]}, which YAML reads as a {type(odd[0]).__name__}; "
                "put it in quotes if text is meant."
            )
        todo += [(each, level + 1) for each in values]
    return value
