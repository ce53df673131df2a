"""The shapes of rows that people have: which columns or keys are the prompt, the completion, a
conversation, or a document.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..core.errors import UserError
from ..settings.corpus import CorpusSettings
from ..text.records import Record, text_of

CONVERSATIONS = ("messages", "conversations", "conversation")
PAIRS = (  # the prompt's columns (the second may be missing or empty) and the completion's
    (("prompt",), "completion"),
    (("prompt",), "response"),
    (("instruction", "input"), "output"),
    (("instruction", "input"), "response"),
    (("instruction", "context"), "response"),
    (("question",), "answer"),
    (("input",), "output"),
)
TEXTS = ("text", "content")
KNOWN = (
    "prompt and completion, messages, instruction and output, question and answer, or text alone"
)
ROLES = {
    **{"system": "system", "developer": "system"},
    **{"user": "user", "human": "user"},
    **{"assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant"},
}
"""OpenAI's names of who speaks, and ShareGPT's."""


@dataclass(frozen=True)
class Shape:
    """The columns of a row that are used, as they are spelled there."""

    prompt: tuple[str, ...] = ()
    """Joined by a blank line; all but the first may be missing or empty."""
    completion: str = ""
    conversation: str = ""
    text: str = ""

    @property
    def kind(self) -> str:
        """`text` or `records`."""
        return "text" if self.text else "records"


@lru_cache(maxsize=1000)
def shape_of(columns: tuple[str, ...], settings: CorpusSettings) -> Shape | None:
    """The shape of rows with these columns; None if it is none of those known or set."""
    if settings.text != "auto":
        return Shape(text=settings.text) if settings.text in columns else None
    if settings.completion != "auto":
        prompt: tuple[str, ...] = () if settings.prompt == "auto" else (settings.prompt,)
        used = {*prompt, settings.completion}
        return Shape(prompt, settings.completion) if used <= set(columns) else None
    spelled = {column.strip().casefold(): column for column in columns}
    for name in CONVERSATIONS:
        if name in spelled:
            return Shape(conversation=spelled[name])
    for names, completion in PAIRS:
        if names[0] in spelled and completion in spelled:
            prompt = tuple(spelled[name] for name in names if name in spelled)
            return Shape(prompt, spelled[completion])
    for name in TEXTS:
        if name in spelled:
            return Shape(text=spelled[name])
    return Shape(text=columns[0]) if len(columns) == 1 else None


def unknown(columns: Sequence[str], settings: CorpusSettings) -> str:
    """Why rows with these columns cannot be used, and what to do."""
    found = ", ".join(map(repr, columns[:20])) or "none"
    asked = [
        f"corpus.{key} {value!r}"
        for key in ("text", "prompt", "completion")
        if (value := getattr(settings, key)) != "auto"
    ]
    if asked:
        return f"it has no column or key as {' and '.join(asked)} ask for (it has: {found})"
    return (
        f"of its columns or keys ({found}) none says what to learn; known are {KNOWN}. Name yours "
        "in params.yaml: corpus.text, or corpus.prompt and corpus.completion"
    )


def document_in(row: Mapping[str, Any], shape: Shape, where: str) -> str:
    """The text of a row; empty if its cell is.

    Raises:
        UserError: it is no text.
    """
    return "" if row.get(shape.text) is None else text_of(row, shape.text, where)


def record_in(row: Mapping[str, Any], shape: Shape, where: str) -> Record | None:
    """The record of a row; None if it has no completion to learn.

    Raises:
        UserError: a value is no text.
    """
    if shape.conversation:
        return _conversation(row[shape.conversation], f"{where}: {shape.conversation!r}")
    first, *others = shape.prompt or ("",)
    if shape.prompt and _is_conversation(row[first]) and _is_conversation(row[shape.completion]):
        return _conversation([*row[first], *row[shape.completion]], where)
    parts = [text_of(row, first, where)] if shape.prompt else []
    parts += [text_of(row, name, where) for name in others if row.get(name)]
    completion = "" if row[shape.completion] is None else text_of(row, shape.completion, where)
    prompt = "\n\n".join(parts)
    return Record(prompt, completion) if completion else None


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _conversation(value: Any, where: str) -> Record | None:
    """The record of a conversation: its last answer, and as the prompt what was said before."""
    if isinstance(value, str):  # as a cell of a table
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise UserError(f"{where} is text, but no JSON list of messages.") from None
    if not _is_conversation(value) or not all(isinstance(turn, dict) for turn in value):
        raise UserError(
            f"{where} is {json.dumps(value)[:40]}, but must be a list of messages such as "
            '{"role": "user", "content": "..."}.'
        )
    turns = [_turn(turn, f"{where}, message {number}") for number, turn in enumerate(value, 1)]
    while turns and turns[-1][0] != "assistant":
        turns.pop()
    if not turns or not turns[-1][1]:
        return None
    return Record(rendered(turns[:-1]), turns[-1][1], tuple(turns))


def _turn(turn: dict[str, Any], where: str) -> tuple[str, str]:
    role = turn.get("role", turn.get("from"))
    key = "content" if "content" in turn else "value"
    content = turn.get(key)
    if isinstance(content, list):  # OpenAI's parts
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) < len(content):
            raise UserError(f"{where} holds something else than text, which no model here learns.")
        return ROLES.get(str(role), str(role)), "".join(text_of(p, "text", where) for p in parts)
    if not isinstance(role, str) or not role:
        raise UserError(f"{where} has no 'role', such as user or assistant.")
    if content is None and role == "assistant":  # a call of a tool
        return "assistant", ""
    return ROLES.get(role, role), text_of(turn, key, where)


def rendered(turns: Sequence[tuple[str, str]]) -> str:
    """A conversation as the prompt for its next answer.

    One message of a user is the prompt itself. Of more, each is introduced by who speaks, and the
    prompt ends in `Assistant:`.
    """
    if [role for role, _ in turns] == ["user"]:
        return turns[0][1]
    if not turns:
        return ""
    said = [f"{role.capitalize()}: {content}" for role, content in turns]
    return "\n\n".join([*said, "Assistant:"])
