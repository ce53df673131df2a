"""Reads the header of a GGUF file, the format of llama.cpp: metadata, and where each tensor lies.

The format is specified in `docs/gguf.md` of ggml. Why not the reader of the `gguf` package: at a
forged length it loops until all memory is taken, and it makes several arrays of each token.
"""

import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from .files import COPY_AGAIN

SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Value types by their numbers in the file, as `struct` names them."""
STRING, ARRAY = 8, 9
MAX_HEADER = 1 << 28
"""Bytes of the header that are read: ten times those of the largest vocabularies."""
MAX_DIMENSIONS = 4
ALIGNMENT = 32
"""Of the tensors in bytes, if the file does not say it."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a GGUF file lies."""

    shape: tuple[int, ...]
    """As in torch, the rows first."""
    kind: int
    """Its number format, as `gguf.GGMLQuantizationType` counts them."""
    offset: int
    """Of its first byte in the file."""


@dataclass(frozen=True)
class GGUF:
    """The header of a GGUF file."""

    path: Path
    size: int
    """Of the file in bytes."""
    metadata: dict[str, Any]
    """Numbers, texts, and lists of them."""
    tensors: dict[str, StoredTensor]


def read_gguf(path: Path) -> GGUF:
    """The header of a GGUF file. Time and memory are of the order of its size.

    Raises:
        UserError: it is missing, cannot be read, or is damaged.
    """
    with read_errors(path, COPY_AGAIN):
        state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)  # a stage asks for configuration, weights and vocabulary
def _read(path: Path, changed: int, size: int) -> GGUF:
    with read_errors(path), path.open("rb") as file:
        header = _Header(file.read(MAX_HEADER))
    try:
        magic, version, tensors, values = header.take("4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        metadata = {header.text(): header.value() for _ in range(values)}
        listed = [header.tensor() for _ in range(tensors)]
    except (ValueError, LookupError, OverflowError, struct.error) as error:
        raise UserError(
            f"{shown(path)} is not readable as GGUF ({error}); it is damaged or incomplete. "
            "Copy it there again."
        ) from error
    alignment = metadata.get("general.alignment")
    if type(alignment) is not int or not 0 < alignment < 1 << 16:
        alignment = ALIGNMENT
    start = -(-header.position // alignment) * alignment
    found = {name: StoredTensor(shape, kind, start + at) for name, shape, kind, at in listed}
    return GGUF(path, size, metadata, found)


class _Header:
    """Takes one value after the other from the beginning of a file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, code: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return values

    def count(self) -> int:
        """Of texts, numbers or bytes that follow: each takes a byte or more."""
        (count,) = self.take("Q")
        if count > len(self.data) - self.position:
            raise ValueError("it ends within its header")
        return int(count)

    def text(self) -> str:
        (data,) = self.take(f"{self.count()}s")
        return bytes(data).decode("utf-8", "replace")

    def value(self) -> Any:
        (kind,) = self.take("I")
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.take(SCALARS[kind])[0]
        (kind,) = self.take("I")
        count = self.count()
        if kind == STRING:
            return [self.text() for _ in range(count)]
        return list(self.take(f"{count}{SCALARS[kind]}"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number format, and offset among the tensors."""
        name, (dimensions,) = self.text(), self.take("I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
        shape = self.take(f"{dimensions}Q")
        return name, shape[::-1], *self.take("IQ")
