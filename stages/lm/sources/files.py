"""One file of the user's, opened so that it is bounded whatever it claims to be."""

import gzip
import io
import os
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from .encodings import recoded

BLOCK_BYTES = 1 << 20
MAX_EXPANSION = 100
"""A compressed file that holds more than so many times its own size, and `FREE_BYTES`, is refused:
text seldom shrinks to a tenth."""
FREE_BYTES = 1 << 28


@dataclass(frozen=True)
class SourceFile:
    """A file that is used, and how it is read."""

    path: Path
    name: str
    """Its path inside the folder, with `/` between folders."""
    bytes: int
    """Its size on the disk."""
    format: str
    """`plain`, or what has to be taken apart: `lines` and `list` (JSON), `csv`, `parquet`, `html`,
    `docx`, `epub`, `pdf`."""
    packing: str = ""
    """`gz` or `zst` if it is compressed."""
    encoding: str = ""
    """What is converted to UTF-8 on reading, such as `utf-16-le`; "": its bytes are kept."""
    kind: str = "text"
    """`text` or `records`."""

    @property
    def shown(self) -> str:
        """Its path for messages."""
        return shown(self.path)


def open_plainly(path: Path) -> int:
    """A descriptor of a file that is nothing but a file: a pipe or a device could block for ever.

    Raises:
        OSError: it cannot be opened.
    """
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, os.O_RDONLY | flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no file any more")
    return descriptor


def expansion_of(file: SourceFile) -> int:
    """The most bytes that a file may hold, unpacked."""
    return max(FREE_BYTES, MAX_EXPANSION * file.bytes)


@contextmanager
def open_source(file: SourceFile) -> Iterator[BinaryIO]:
    """The file's bytes: unpacked, and converted to UTF-8 where `encoding` says so.

    Raises:
        UserError: it cannot be read, is damaged, or expands beyond all measure.
    """
    with read_errors(file.path), os.fdopen(open_plainly(file.path), "rb") as raw:
        if not file.packing and not file.encoding:
            yield raw
            return
        blocks = _unpacked(file, raw)
        if file.encoding:
            blocks = recoded(blocks, file.encoding, file.shown)
        with io.BufferedReader(_Blocks(blocks), BLOCK_BYTES) as reader:
            yield reader


def _unpacked(file: SourceFile, raw: BinaryIO) -> Iterator[bytes]:
    allowed = expansion_of(file)
    try:
        source: Any = raw
        if file.packing == "gz":
            source = gzip.GzipFile(fileobj=raw)
        elif file.packing == "zst":
            import pyarrow  # takes a fifth of a second

            source = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd")
        while block := source.read(BLOCK_BYTES):
            allowed -= len(block)
            if file.packing and allowed < 0:
                raise UserError(
                    f"{file.shown} expands to more than {MAX_EXPANSION} times its size, which no "
                    "text of use does; if it is sound, unpack it and put the file itself there."
                )
            yield block
    except (EOFError, zlib.error, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the system's, not the packer's
        raise UserError(
            f"{file.shown} cannot be unpacked ({error}); it was cut or damaged. Copy it again."
        ) from None


class _Blocks(io.RawIOBase):
    """A file that reads what an iterator yields."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        while not self.left:
            block = next(self.blocks, None)
            if block is None:
                return 0
            self.left = memoryview(block)
        count = min(len(buffer), len(self.left))
        buffer[:count] = self.left[:count]
        self.left = self.left[count:]
        return count
