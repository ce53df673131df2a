"""YAML as DVC reads it: with the same library, in the same way."""

from typing import Any

from ruamel.yaml import YAML

from .errors import UserError

MAX_CHARACTERS = 100_000
MAX_VALUES = 10_000
"""Bounds of time and memory: anchors and aliases let few lines stand for gigabytes."""


def parse_yaml(text: str, name: str) -> Any:
    """The value of a YAML document; `name` says in messages whose text it is.

    Raises:
        UserError: the text is not YAML, or larger than any settings.
    """
    if len(text) > MAX_CHARACTERS or text.count("[") + text.count("{") > MAX_VALUES // 10:
        raise UserError(f"{name} is larger than any settings; put less into it.")
    try:
        value = YAML(typ="safe").load(text)
    except Exception as error:  # an impossible date or tag can raise nearly every type
        raise UserError(f"{name} is not readable as YAML: {error}.") from error
    todo, count = [value], 0
    while todo and count <= MAX_VALUES:
        one = todo.pop()
        count += 1
        if isinstance(one, dict):
            todo += one.values()
        elif isinstance(one, list | set | tuple):
            todo += one
    if todo:
        raise UserError(f"{name} is larger than any settings; put less into it.")
    return value
