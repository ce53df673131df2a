"""Records of a task, each a prompt and its completion, or a conversation: read and split."""

import hashlib
import json
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..data.splits import SPLITS
from .chat_template import Message

FORM = '{"prompt": "...", "completion": "..."}'


@dataclass(frozen=True, order=True)
class Record:
    """A prompt and the completion that the model learns to answer it with."""

    prompt: str
    completion: str
    messages: tuple[Message, ...] = field(default=(), compare=False)
    """Role and content of each message, if it was a conversation; the last is the completion."""

    def conversation(self) -> tuple[Message, ...]:
        """The messages, or those that prompt and completion stand for."""
        return self.messages or (("user", self.prompt), ("assistant", self.completion))


def read_records(path: Path) -> list[Record]:
    """The records of a file, one per line, without repetitions.

    Other keys than `prompt` and `completion` are ignored, and so are blank lines.

    Raises:
        UserError: a line is no record, or the file holds none.
    """
    with read_errors(path, "put your records there as one plain file."), path.open("rb") as file:
        found = [
            parse_record(line, f"line {number} of {shown(path)}")
            for number, line in enumerate(file, 1)
            if line.strip()
        ]
    if not found:
        raise UserError(f"{shown(path)} holds no record; put lines such as {FORM} into it.")
    return list(dict.fromkeys(found))


def parse_record(line: bytes, where: str) -> Record:
    """The record in a line; `where` names the line in messages.

    Raises:
        UserError: the line is no record.
    """
    try:
        # "-sig" skips the byte order mark that Windows' editors put before the first line.
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8; save the file in that encoding.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}); write each record as {FORM}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{where} is JSON, but no object; write each record as {FORM}.")
    return Record(text_of(values, "prompt", where), text_of(values, "completion", where))


def text_of(values: dict[str, Any], key: str, where: str) -> str:
    """The text under a key of a record; `where` names the line in messages.

    Raises:
        UserError: there is none, or it is no text in UTF-8.
    """
    if key not in values:
        others = ", ".join(sorted(values)) or "none"
        raise UserError(f"{where} has no {key!r} (its keys: {others}); write {FORM}.")
    text = values[key]
    if not isinstance(text, str):
        shown_value = json.dumps(text)[:40]
        raise UserError(f"{where}: {key!r} is {shown_value}, but must be text in quotation marks.")
    if not text:
        raise UserError(f"{where}: {key!r} is empty; give it text, or remove the line.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {key!r} holds half of a character ({text[error.start]!r} at character "
            f"{error.start + 1}), which no text in UTF-8 has; remove it."
        ) from None
    return text


def split_records(
    records: list[Record], val_fraction: float, test_fraction: float
) -> dict[str, list[Record]]:
    """The records of each split, in the order of their prompts' SHA-256.

    So the splits do not depend on the order in the file. Records of one prompt are in one split,
    so that no held-out prompt was trained on; each split has at least one prompt.

    Raises:
        UserError: there are fewer than three prompts.
    """
    prompts = {record.prompt: hashlib.sha256(record.prompt.encode()).digest() for record in records}
    if len(prompts) < len(SPLITS):
        raise UserError(
            f"data/input.jsonl holds records of {len(prompts)} prompt{'s'[: len(prompts) - 1]}, "
            "which cannot be split into train, val and test; add records."
        )
    ordered = sorted(records, key=lambda record: (prompts[record.prompt], record))
    starts = [  # index of each prompt's first record
        index
        for index, record in enumerate(ordered)
        if not index or record.prompt != ordered[index - 1].prompt
    ]
    # Each cut moves on to the next prompt.
    shares = (1 - val_fraction - test_fraction, 1 - test_fraction)
    val, test = (bisect_left(starts, share * len(ordered) - 1e-6) for share in shares)
    val = min(max(val, 1), len(starts) - 2)
    test = min(max(test, val + 1), len(starts) - 1)
    val, test = starts[val], starts[test]
    return {"train": ordered[:val], "val": ordered[val:test], "test": ordered[test:]}
