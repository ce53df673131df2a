"""Reads the files of `torch.save` that hold nothing but tensors, numbers, text, dicts and lists.

Model files come from strangers, and a pickle can run any code. Why not `torch.load` with
`weights_only=True`: it ran code before torch 2.6 (CVE-2025-32434) and corrupted memory before 2.10
(CVE-2026-24747), and it still takes all memory of the machine where a forged pickle calls
`bytearray` with a large number. This reader knows the few instructions that `torch.save` writes and
the two functions they call, and needs time and memory of the order of the file's size.
"""

import gc
import io
import math
import os
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

PLAIN = {str, int, float, bool, type(None)}
"""Types of the values beside tensors, dicts and lists."""
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
"""Number formats by the names that `torch.save` gives them."""
MAX_DEPTH = 64
"""Levels of dicts and lists within each other, and dimensions of a tensor."""
MAX_PICKLE = 1 << 23
"""Bytes of the pickle, which holds everything but the tensors' numbers. A forged byte can cost
64 bytes of memory and half a microsecond."""


def read_tensors_file(path: Path) -> Any:
    """The value that was given to `torch.save`: a tree of dicts, lists, tensors and plain values.

    Raises anything for a file that is damaged, forged, or holds something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        declared = sum(max(entry.file_size, entry.compress_size) for entry in entries)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        # Compressed or overlapping entries could expand to any size.
        if not stored or declared > size or len(names) != len(entries):
            raise ValueError("the archive is not as torch writes it")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if archive.read(folder + "byteorder") != b"little":
            raise ValueError("the numbers have another order of bytes")
        if archive.getinfo(pickled).file_size > MAX_PICKLE:
            raise ValueError("the pickle is too long")
        collecting = gc.isenabled()
        gc.disable()  # a tree has no cycles, and collecting would walk millions of lists in vain
        try:
            value = _PickleReader(archive, file, folder).run(archive.read(pickled))
        finally:
            if collecting:
                gc.enable()
    _check(value, MAX_DEPTH)
    return value


class _Storage(NamedTuple):
    """What a pickle says of the numbers of a tensor; `key` names their entry in the archive."""

    word: str
    dtype: torch.dtype
    key: str
    device: str
    numbers: int


class _PickleReader:
    """Runs the instructions of a pickle (`pickletools` documents them all).

    Only texts, number formats and functions can be used twice, so the value is a tree no larger
    than the pickle.
    """

    def __init__(self, archive: zipfile.ZipFile, file: io.BufferedReader, folder: str) -> None:
        self.archive = archive
        self.file = file
        self.folder = folder
        self.used: set[str] = set()
        self.globals: dict[str, Any] = {f"torch {name}": dtype for name, dtype in DTYPES.items()}
        self.globals["torch._utils _rebuild_tensor_v2"] = self._tensor
        self.globals["collections OrderedDict"] = lambda: None  # a tensor's hooks, always empty

    def run(self, program: bytes) -> Any:
        """The value that a pickle builds. Long, but one case for each kind of instruction.

        Raises anything for a pickle that `torch.save` does not write.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        argument: Any
        repeatable = MAX_PICKLE  # characters of texts that may still be used again

        def pop(count: int) -> list[Any]:
            taken = stack[len(stack) - count :]
            del stack[len(stack) - count :]
            return taken

        for opcode, argument, _ in pickletools.genops(program):
            match opcode.name:
                case "PROTO" | "STOP":
                    pass
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                    stack.append(argument)
                case "NONE":
                    stack.append(None)
                case "NEWTRUE" | "NEWFALSE":
                    stack.append(opcode.name == "NEWTRUE")
                case "EMPTY_DICT":
                    stack.append({})
                case "EMPTY_LIST":
                    stack.append([])
                case "EMPTY_TUPLE":
                    stack.append(())
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(pop(int(opcode.name[-1]))))
                case "TUPLE":
                    stack.append(tuple(pop(len(stack) - marks.pop())))
                case "APPEND" | "APPENDS":
                    items = pop(1 if opcode.name == "APPEND" else len(stack) - marks.pop())
                    _of_type(list, stack[-1]).extend(items)
                case "SETITEM" | "SETITEMS":
                    items = pop(2 if opcode.name == "SETITEM" else len(stack) - marks.pop())
                    if not all(type(key) in PLAIN for key in items[::2]):
                        raise ValueError("a key is no plain value")
                    _of_type(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    if isinstance(stack[-1], str | torch.dtype) or callable(stack[-1]):
                        memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                    repeatable -= len(stack[-1]) if type(stack[-1]) is str else 0
                    if repeatable < 0:
                        raise ValueError("the same texts are used over and over")
                case "GLOBAL":
                    stack.append(self.globals[argument])
                case "BINPERSID":
                    stack.append(_Storage(*_of_type(tuple, stack.pop())))
                case "REDUCE":
                    function, arguments = pop(2)
                    stack.append(function(*_of_type(tuple, arguments)))
                case _:
                    raise ValueError(f"the pickle holds {opcode.name}")
        (value,) = stack
        return value

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, strides: Any, gradient: Any, hooks: Any
    ) -> torch.Tensor:
        """What `torch._utils._rebuild_tensor_v2` makes of its arguments.

        Only for a contiguous tensor that shares its storage with no other.
        """
        word, dtype, key, device, count = _of_type(_Storage, storage)
        if len(shape) > MAX_DEPTH or not all(type(size) is int for size in (*shape, *strides)):
            raise ValueError("a tensor has no shape")
        if key in self.used or math.prod(shape) != count:
            raise ValueError("a tensor shares its numbers")
        contiguous = tuple(math.prod(shape[first:]) for first in range(1, len(shape) + 1))
        rest = (word, device, offset, gradient, hooks)
        if rest != ("storage", "cpu", 0, False, None) or (count and strides != contiguous):
            raise ValueError("a tensor is not stored as it is written")
        self.used.add(key)
        entry = self.archive.getinfo(f"{self.folder}data/{_of_type(str, key)}")
        if entry.file_size != count * dtype.itemsize:
            raise ValueError(f"{entry.file_size} bytes are not {count} numbers")
        if not count:
            return torch.empty(shape, dtype=dtype)
        # Read past zipfile, which would copy the bytes and compute their CRC; the caller has a
        # better digest of them.
        self.file.seek(entry.header_offset)
        name_bytes, extra_bytes = struct.unpack("<26xHH", self.file.read(30))
        self.file.seek(name_bytes + extra_bytes, os.SEEK_CUR)
        data = np.empty(entry.file_size, np.uint8)
        if self.file.readinto(data.data) != len(data):
            raise ValueError("the file ends too early")
        return torch.from_numpy(data).view(dtype).reshape(shape)


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {type(value).__name__} is no {kind.__name__}")
    return value


def _check(value: Any, depth: int) -> None:
    """Refuse other types than `torch.save` was given, and dicts and lists nested too deep."""
    if depth < 0:
        raise ValueError("the values are nested too deep")
    if type(value) in (dict, list):
        for item in value.values() if type(value) is dict else value:
            _check(item, depth - 1)
    elif type(value) is not torch.Tensor and type(value) not in PLAIN:
        raise ValueError(f"a {type(value).__name__} is no plain value")
