"""Reads what a survey found: documents one after the other, or records."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..core.errors import UserError
from ..text.records import Record
from .encodings import invalid_bytes, likely_encoding
from .files import SourceFile, open_source
from .isolation import UnusableError, isolated
from .shapes import Shape, document_in, record_in, shape_of, unknown
from .survey import Survey
from .tables import TABLES, rows
from .walk import LeftOut

PIECE_BYTES = 4 << 20
"""A longer document comes in pieces of about this size."""


@dataclass(frozen=True)
class Document:
    """A text with a beginning and an end, or a piece of a long one."""

    name: str
    """`notes/a.md`, or `mails.csv, row 7`."""
    text: bytes
    """UTF-8; of a plain file, whatever it holds. A piece begins and ends between characters."""
    more: bool = False
    """The next document is a further piece of this one."""


def unheard(line: str) -> None:
    """Tell nobody."""


def read_documents(survey: Survey, tell: Callable[[str], None] = unheard) -> Iterator[Document]:
    """All documents, in the order of the files' names; each has at least a byte.

    `tell` is called at the end with lines about what was left out or is not UTF-8.

    Raises:
        UserError: a file cannot be read, is damaged, or holds something else.
    """
    notes = _Notes()
    for file in survey.files:
        if file.format == "plain":
            yield from _plain(file, notes)
        elif file.format in TABLES:
            yield from _rows(file, survey, notes)
        else:
            yield from _taken_apart(file, notes)
    notes.tell(tell)


def read_records(survey: Survey, tell: Callable[[str], None] = unheard) -> Iterator[Record]:
    """All records, in the order of the files' names, repetitions among them.

    Raises:
        UserError: a file cannot be read or is damaged, or a row is no record.
    """
    notes = _Notes()
    for file in survey.files:
        for where, row, shape in _shaped(file, survey):
            record = record_in(row, shape, where)
            if record is None:
                notes.left_out.add("no completion to learn", where)
            else:
                yield record
    notes.tell(tell)


@dataclass
class _Notes:
    """What is noticed while reading."""

    left_out: LeftOut = field(default_factory=LeftOut)
    size: int = 0
    invalid: dict[str, int] = field(default_factory=dict)
    """Bytes that are not UTF-8, by the file's path as shown."""
    sample: bytes = b""
    """A piece of the first such file."""

    def look(self, file: SourceFile, piece: bytes) -> None:
        """Count what is not UTF-8 in a piece of a file."""
        self.size += len(piece)
        if wrong := invalid_bytes(piece):
            self.sample = self.sample or piece
            self.invalid[file.shown] = self.invalid.get(file.shown, 0) + wrong

    def tell(self, tell: Callable[[str], None]) -> None:
        """Tell it in a few lines."""
        for line in self.left_out.lines():
            tell(line)
        if not self.invalid:
            return
        first = next(iter(self.invalid))
        line = (
            f"{100 * sum(self.invalid.values()) / self.size:.2g} % of the text is not UTF-8 "
            f"({len(self.invalid):,} file{'s'[: len(self.invalid) - 1]}, the first {first}); it is "
            "learned byte for byte"
        )
        if name := likely_encoding(self.sample):
            line += f"; likely {name}: iconv -f {name} -t UTF-8 '{first}' > '{first}.new'"
        tell(line)


def _plain(file: SourceFile, notes: _Notes) -> Iterator[Document]:
    with open_source(file) as source:
        piece = source.read(PIECE_BYTES)
        while piece:
            following = source.read(PIECE_BYTES)
            if following and (cut := _cut(piece)) < len(piece):
                piece, following = piece[:cut], piece[cut:] + following
            notes.look(file, piece)
            yield Document(file.name, piece, bool(following))
            piece = following


def _cut(piece: bytes) -> int:
    """Where a piece ends: after its last line, or between two characters."""
    if line := piece.rfind(b"\n", len(piece) // 2) + 1:
        return line
    cut = len(piece) - 1
    while cut > len(piece) - 4 and piece[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _rows(file: SourceFile, survey: Survey, notes: _Notes) -> Iterator[Document]:
    for where, row, shape in _shaped(file, survey):
        text = document_in(row, shape, where).encode()
        if text:
            yield Document(where, text)
        else:
            notes.left_out.add("no text in it", where)


def _shaped(file: SourceFile, survey: Survey) -> Iterator[tuple[str, dict[str, object], Shape]]:
    """The rows of a table, each with where it stands and which columns it is read by."""
    word = TABLES[file.format]
    for number, row in rows(file):
        where = f"{file.name}, {word} {number}"
        if isinstance(row, str):
            row = {"text": row}
        if not isinstance(row, dict):
            raise UserError(f"{where} is JSON, but no object with keys; mend or remove it.")
        shape = shape_of(tuple(row), survey.settings)
        if shape is None:
            raise UserError(f"{where}: {unknown(tuple(row), survey.settings)}.")
        if shape.kind != file.kind:
            raise UserError(
                f"{where} holds a {'text' if shape.text else 'record'}, but others before it do "
                "not, and one model learns from one of them; put those into files of their own and "
                "move one of the two elsewhere."
            )
        yield where, row, shape


def _taken_apart(file: SourceFile, notes: _Notes) -> Iterator[Document]:
    """The text of a file with markup, in pieces."""
    pending, begun = b"", False
    try:
        for part in isolated(file):
            if len(pending) >= PIECE_BYTES:
                yield Document(file.name, pending, True)
                pending, begun = b"", True
            pending += part.encode()
    except UnusableError as error:
        if begun:
            raise  # a document that has begun cannot be left out
        notes.left_out.add(error.reason, file.name)
        return
    if pending:
        yield Document(file.name, pending)
    else:
        notes.left_out.add("no text in it (scanned pages?)", file.name)
