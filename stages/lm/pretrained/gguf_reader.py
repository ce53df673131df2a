"""Reads the header of a GGUF file, the format of llama.cpp: metadata, and where each tensor lies.

The format is specified in `docs/gguf.md` of ggml. Why not the reader of the `gguf` package: at a
forged length it loops until all memory is taken, and it makes several arrays of each token. The
package decodes the numbers (`gguf.quants`), and its constants name the types.
"""

import math
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from torch import Tensor

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from .files import COPY_AGAIN, OTHER_MODEL

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Value types by their numbers in the file, as `struct` names them."""
STRING, ARRAY = 8, 9
MAX_HEADER = 1 << 28
"""Bytes of metadata that are read: ten times those of the largest vocabularies."""
MAX_DIMENSIONS = 4
NUMBERS = {Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1}
NUMBERS |= {Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K, Kind.IQ4_NL, Kind.IQ4_XS}
"""Number formats of tensors that are read: those of published files."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor of a GGUF file lies."""

    shape: tuple[int, ...]
    """As in torch, the rows first."""
    kind: Kind
    offset: int
    """Of its first byte in the file."""
    size: int
    """In bytes."""


@dataclass(frozen=True)
class GGUF:
    """The header of a GGUF file."""

    path: Path
    metadata: dict[str, Any]
    """Numbers, texts, and lists of them."""
    tensors: dict[str, StoredTensor]

    def read(self, name: str) -> Tensor:
        """A tensor in float32, decoded from its number format."""
        stored = self.tensors[name]
        with read_errors(self.path), self.path.open("rb") as file:
            file.seek(stored.offset)
            data = np.frombuffer(file.read(stored.size), np.uint8)
        with np.errstate(all="ignore"):  # of forged scales; whoever uses the result checks it
            numbers = dequantize(data, stored.kind).astype(np.float32)
        return torch.from_numpy(numbers.reshape(stored.shape))


class _Header:
    """Takes one value after the other from the beginning of a file."""

    def __init__(self, file: BinaryIO) -> None:
        self.data = file.read(MAX_HEADER)
        self.position = 0

    def bytes(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise ValueError("it ends within its header")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.bytes(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        # Vocabularies may hold parts of characters.
        return self.bytes(self.number("Q")).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise ValueError(f"it has a value of the unknown type {kind}")
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            # A text takes 8 bytes or more, so that a forged number ends at the end of the file.
            return [self.text() for _ in range(count)]
        if kind not in SCALARS:
            raise ValueError(f"it has a list of the type {kind}")
        code = f"<{count}{SCALARS[kind]}"
        return list(struct.unpack(code, self.bytes(count * struct.calcsize(SCALARS[kind]))))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number format and offset in the file's data."""
        name, dimensions = self.text(), self.number("I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise ValueError(f"its tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")


def read_gguf(path: Path) -> GGUF:
    """The header of a GGUF file. Time and memory are of the order of its size.

    Raises:
        UserError: it is missing, cannot be read, is damaged, or holds numbers in a format that is
            not read.
    """
    with read_errors(path, COPY_AGAIN):
        state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=1)  # a stage asks for configuration, weights and vocabulary
def _read(path: Path, changed: int, size: int) -> GGUF:
    with read_errors(path), path.open("rb") as file:
        header = _Header(file)
    try:
        if header.bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        if (version := header.number("I")) not in (2, 3):
            raise ValueError(f"its version is {version}, not 2 or 3")
        tensors, values = header.number("Q"), header.number("Q")
        metadata = {header.text(): header.value(header.number("I")) for _ in range(values)}
        listed = [header.tensor() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 0 < alignment < 1 << 16:
            raise ValueError(f"its alignment is {str(alignment)[:20]}")
        start = -(-header.position // alignment) * alignment
        found = {}
        for name, shape, number, offset in listed:
            found[name] = stored = _stored(path, name, shape, number, start + offset)
            if stored.offset + stored.size > size:
                raise ValueError(f"its tensor {name[:80]!r} ends beyond the file")
        if len(found) < tensors:
            raise ValueError("it has two tensors of one name")
    except (ValueError, struct.error, OverflowError) as error:
        raise UserError(
            f"{shown(path)} is not readable as GGUF ({error}); it is damaged or incomplete. "
            "Copy it there again."
        ) from error
    return GGUF(path, metadata, found)


def _stored(
    path: Path, name: str, shape: tuple[int, ...], number: int, offset: int
) -> StoredTensor:
    kind = next((kind for kind in NUMBERS if kind == number), None)
    if kind is None:
        known = {int(kind): kind.name for kind in Kind}
        raise UserError(
            f"{shown(path)}: {name[:80]} is stored as {known.get(number, number)}, but only "
            f"{', '.join(sorted(kind.name for kind in NUMBERS))} can be read; {OTHER_MODEL}"
        )
    per_block, bytes_per_block = gguf.GGML_QUANT_SIZES[kind]
    if shape[-1] % per_block:
        raise ValueError(f"its tensor {name[:80]!r} has rows of {shape[-1]} numbers")
    size = math.prod(shape) // per_block * bytes_per_block
    return StoredTensor(shape, kind, offset, size)
