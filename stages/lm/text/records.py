"""Records of a task, a prompt and its completion each: read from JSON lines, split, as bytes.

The bytes of a record are `prompt 0xFE completion 0xFF`. No text in UTF-8 holds either of the two,
and a tokenizer makes each a token of its own, so any vocabulary serves and nothing in a text can
be taken for them. Knows nothing about token ids.
"""

import hashlib
import json
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import shown
from ..data.splits import SPLITS

PROMPT_END = b"\xfe"
RECORD_END = b"\xff"
FORM = '{"prompt": "...", "completion": "..."}'


@dataclass(frozen=True, order=True)
class Record:
    """What is asked and what is to be answered."""

    prompt: str
    completion: str

    def data(self) -> bytes:
        """The record as it is tokenized."""
        return self.prompt.encode() + PROMPT_END + self.completion.encode() + RECORD_END

    def scored_bytes(self) -> int:
        """Bytes a model is scored on: the completion's, and one for its end."""
        return len(self.completion.encode()) + 1


def records_in(data: bytes) -> list[Record]:
    """The records that bytes made by `Record.data` hold."""
    pairs = (part.split(PROMPT_END) for part in data.split(RECORD_END)[:-1])
    return [Record(prompt.decode(), completion.decode()) for prompt, completion in pairs]


def read_records(path: Path) -> list[Record]:
    """The records of a file, one a line, each pair once; other keys and blank lines are ignored.

    Raises:
        UserError: a line is no record, or there is none.
    """
    try:
        with path.open("rb") as file:
            lines = enumerate(file, 1)
            found = [
                parsed(line, f"line {n} of {shown(path)}") for n, line in lines if line.strip()
            ]
    except OSError as error:
        raise UserError(
            f"{shown(path)} cannot be read ({error.strerror}); put your records there as one plain "
            "file."
        ) from error
    if not found:
        raise UserError(f"{shown(path)} holds no record; put lines such as {FORM} into it.")
    return list(dict.fromkeys(found))


def parsed(line: bytes, place: str) -> Record:
    """The record in a line; `place` is for messages.

    Raises:
        UserError: it is none.
    """
    try:
        # Windows' editors put a mark before the first line.
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{place} is not UTF-8; save the file in that encoding.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}); write each record as {FORM}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{place} is JSON, but no object; write each record as {FORM}.")
    return Record(text_of(values, "prompt", place), text_of(values, "completion", place))


def text_of(values: dict[str, Any], key: str, place: str) -> str:
    """The text under a key of a record."""
    if key not in values:
        others = ", ".join(sorted(values)) or "none"
        raise UserError(f"{place} has no {key!r} (its keys: {others}); write {FORM}.")
    text = values[key]
    if not isinstance(text, str):
        shown_value = json.dumps(text)[:40]
        raise UserError(f"{place}: {key!r} is {shown_value}, but must be text in quotation marks.")
    if not text:
        raise UserError(f"{place}: {key!r} is empty; give it text, or remove the line.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place}: {key!r} holds half of a character ({text[error.start]!r} at character "
            f"{error.start + 1}), which no text in UTF-8 has; remove it."
        ) from None
    return text


def split_records(
    records: list[Record], val_fraction: float, test_fraction: float
) -> dict[str, list[Record]]:
    """The records by split, in the order of their prompts' SHA-256, whatever order they come in.

    Records of one prompt are in one split, so that no answer is known beforehand; each split has
    at least one.

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
    firsts = [
        place
        for place, record in enumerate(ordered)
        if not place or record.prompt != ordered[place - 1].prompt
    ]
    # The first prompts that begin at or after the cuts.
    shares = (1 - val_fraction - test_fraction, 1 - test_fraction)
    val, test = (bisect_left(firsts, share * len(ordered) - 1e-6) for share in shares)
    val = min(max(val, 1), len(firsts) - 2)
    test = min(max(test, val + 1), len(firsts) - 1)
    val, test = firsts[val], firsts[test]
    return {"train": ordered[:val], "val": ordered[val:test], "test": ordered[test:]}
