"""What a model learns from, split into train, val and test: a text, documents, or records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from ..text.records import Record


class Piece(NamedTuple):
    """Some bytes of a split, as they are tokenized; no token spans two pieces."""

    split: str
    data: bytes
    """With `TEXT_END` at its end, where a document or a message of a record ends."""


@dataclass(frozen=True)
class Corpus:
    """All that is learned from. It can be read any number of times and is not held in memory,
    except for records."""

    kind: str
    """`text`, `documents` or `records`."""
    bytes: int
    """What recipes go by."""
    sha256: str
    """Of the text, or of all documents or records."""
    sizes: dict[str, int]
    """Bytes of each split, without the marks that end documents."""
    read: Callable[[], Iterator[Piece]]
    """The pieces of all splits; of text and records, in the order of `SPLITS`."""
    records: dict[str, list[Record]] = field(default_factory=dict)
    """Of each split, if they are records."""
    counts: dict[str, int] = field(default_factory=dict)
    """Documents or records in each split."""
    figures: dict[str, int] = field(default_factory=dict)
    """More numbers for `metrics/corpus.json`."""
    lines: tuple[str, ...] = ()
    """What the user should know."""
