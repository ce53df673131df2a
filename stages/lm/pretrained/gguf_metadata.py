"""Reads the metadata of a GGUF file, in a tenth of the time that `gguf.GGUFReader` takes.

The format is specified in `docs/gguf.md` of ggml: a header, then keys with typed values. A file
says how long its texts and lists are; nothing is read beyond its end.
"""

import struct
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from .files import COPY_AGAIN

MAX_BYTES = 256 << 20
"""Metadata are in the first bytes of a file; the largest vocabularies take 20 MB."""
TEXT, LIST = 8, 9
NUMBERS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Types of values by their codes, as `struct` names them."""


def read_metadata(path: Path) -> dict[str, Any]:
    """The keys and values: numbers, texts, and lists of them.

    Raises:
        UserError: it is no GGUF file, or damaged.
    """
    with read_errors(path), path.open("rb") as file:
        data = file.read(MAX_BYTES)
    try:
        return _Reader(data).metadata()
    except (ValueError, LookupError, struct.error, OverflowError) as error:
        raise UserError(f"{shown(path)} is no whole GGUF file ({error}); {COPY_AGAIN}") from None


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.offset = 0

    def metadata(self) -> dict[str, Any]:
        magic, version, _, count = self.take("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        found = {}
        for _ in range(count):
            key = self.text()
            (kind,) = self.take("<I")
            found[key] = self.list() if kind == LIST else self.value(kind)
        return found

    def take(self, form: str) -> tuple[Any, ...]:
        values = struct.unpack_from(form, self.data, self.offset)
        self.offset += struct.calcsize(form)
        return values

    def text(self) -> str:
        (size,) = self.take("<Q")
        if size > len(self.data) - self.offset:
            raise ValueError("a text is longer than the file")
        self.offset += size
        return self.data[self.offset - size : self.offset].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        return self.text() if kind == TEXT else self.take("<" + NUMBERS[kind])[0]

    def list(self) -> list[Any]:
        kind, count = self.take("<IQ")
        if count > len(self.data) - self.offset:
            raise ValueError("a list is longer than the file")
        if kind == TEXT:
            return [self.text() for _ in range(count)]
        return list(self.take(f"<{count}{NUMBERS[kind]}"))
