"""Records of a task, each a prompt and its completion, or a conversation: read and split."""

import hashlib
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from ..data.splits import SPLITS
from .chat_template import Message

TEXT_END = b"\xff"
"""Ends a document, or a message of a record, among bytes that are read: UTF-8 does not use it."""
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

    def data(self) -> bytes:
        """The messages, each with `TEXT_END`."""
        return b"".join(content.encode() + TEXT_END for _, content in self.conversation())


def text_of(values: Mapping[str, Any], key: str, where: str) -> str:
    """The text under a key of a record; `where` names the line in messages.

    Raises:
        UserError: there is none, or it is no text in UTF-8.
    """
    if key not in values:
        others = ", ".join(sorted(values)) or "none"
        raise UserError(f"{where} has no {key!r} (its keys: {others}); write {FORM}.")
    text = values[key]
    if not isinstance(text, str):
        shown_value = json.dumps(text, default=str)[:40]
        raise UserError(f"{where}: {key!r} is {shown_value}, but must be text in quotation marks.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: {key!r} holds half of a character ({text[error.start]!r} at character "
            f"{error.start + 1}), which no text in UTF-8 has; remove it."
        ) from None
    return text


def split_by_prompt(records: list[Record]) -> bool:
    """Whether records are split by prompt: not if there are too few prompts, or one has most."""
    prompts = Counter(record.prompt for record in records)
    return len(prompts) >= len(SPLITS) and 2 * max(prompts.values()) <= len(records)


def split_records(
    records: list[Record], val_fraction: float, test_fraction: float
) -> dict[str, list[Record]]:
    """The records of each split, in the order of their prompts' SHA-256.

    So the splits do not depend on the order in the file. Records of one prompt are in one split,
    so that no held-out prompt was trained on; each split has at least one prompt. Where
    `split_by_prompt` says no, each record counts as a prompt of its own.

    Raises:
        UserError: there are fewer than three records.
    """
    by_prompt = split_by_prompt(records)
    groups = {record: record.prompt.encode() if by_prompt else record.data() for record in records}
    digests = {group: hashlib.sha256(group).digest() for group in groups.values()}
    if len(digests) < len(SPLITS):
        raise UserError(
            f"{len(digests)} different record{'s'[: len(digests) - 1]} cannot be split into train, "
            "val and test; add records."
        )
    ordered = sorted(records, key=lambda record: (digests[groups[record]], record))
    starts = [  # index of each group's first record
        index
        for index, record in enumerate(ordered)
        if not index or groups[record] != groups[ordered[index - 1]]
    ]
    # Each cut moves on to the next group.
    shares = (1 - val_fraction - test_fraction, 1 - test_fraction)
    val, test = (bisect_left(starts, share * len(ordered) - 1e-6) for share in shares)
    val = min(max(val, 1), len(starts) - 2)
    test = min(max(test, val + 1), len(starts) - 1)
    val, test = starts[val], starts[test]
    return {"train": ordered[:val], "val": ordered[val:test], "test": ordered[test:]}
