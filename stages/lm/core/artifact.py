"""One file of tensors and plain values that says what it is and notices damage.

The common ground of the checkpoint, the quantized model and the resume state: written by
`torch.save`, so that every program that knows torch opens it, and read by a reader of our own that
can build nothing but what we write. A forged file runs no code, whatever the version of torch:
`torch.load(weights_only=True)` would need 2.10 at least (CVE-2025-32434 runs code before 2.6,
CVE-2026-24747 corrupts memory before 2.10).
"""

import gc
import hashlib
import io
import math
import os
import pickletools
import struct
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .errors import UserError
from .files import atomic_writer
from .paths import shown

KEYS = {"format", "version", "digest", "content"}
PLAIN = {str, int, float, bool, type(None)}
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
"""Dicts and lists within each other, and dimensions of a tensor."""
MAX_PICKLE = 1 << 23
"""Bytes of everything but the tensors' numbers; a forged byte can cost 64 of memory
and half a microsecond."""
REMEDY = "remove it and run `dvc repro`, or restore it with `dvc checkout`."
CHECKPOINT_FORMAT = ("checkpoint", 1)
"""Kind and version of `checkpoint.pt`: here, so that `tokenize` reads one without model code."""


def write_artifact(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, text, and dicts and lists of them), whole or not at all.

    The bytes depend on nothing but the arguments and torch's version.
    """
    digest = content_digest(content)
    document = {"format": kind, "version": version, "digest": digest, "content": content}
    document = _canonical(document, {})
    with atomic_writer(path) as file:
        # Through a file object: given a path, torch would put the temporary name into the bytes.
        try:
            torch.save(document, file)
        except RuntimeError as error:
            # After a failed write torch closes its archive all the same, and complains of that.
            raise (error.__context__ or error) from None


def read_artifact(
    path: Path, kinds: dict[str, int], remedy: str = REMEDY
) -> tuple[str, dict[str, Any]]:
    """The kind and content of a file, which must be one of `kinds` (name -> version).

    `remedy` is the advice that ends every error message.

    Raises:
        UserError: the file is missing, damaged, forged, or of another kind or version.
    """
    with opened_artifact(path, kinds, remedy) as artifact:
        return artifact


@contextmanager
def opened_artifact(
    path: Path, kinds: dict[str, int], remedy: str = REMEDY
) -> Generator[tuple[str, dict[str, Any]], None, None]:
    """What `read_artifact` returns, to use while a thread still sums up its digest.

    On leaving, a file that does not match it is refused, whatever came of using it: what is done
    meanwhile must bear any numbers, and change none of them.
    """
    name = shown(path)
    try:
        document = _read(path)
        if type(document) is not dict or set(document) != KEYS:
            raise ValueError("the parts of an artifact are not there")
        kind, version, content = document["format"], document["version"], document["content"]
        if (type(kind), type(version), type(content)) != (str, int, dict):
            raise ValueError("the parts of an artifact are of other types")
    except FileNotFoundError:
        raise UserError(f"{name} is missing; `dvc repro` makes it.") from None
    except Exception as error:  # a damaged or foreign file can raise nearly every type
        raise UserError(f"{name} is damaged, or is no file of this project; {remedy}") from error
    if kinds.get(kind) != version:
        expected = " or ".join(f"{kind} {version}" for kind, version in kinds.items())
        raise UserError(f"{name} holds {kind} {version}, but {expected} is needed; {remedy}")
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(content_digest, content)
        try:
            yield kind, content
        finally:
            if digest.result() != document["digest"]:
                raise UserError(
                    f"{name} is damaged: its contents do not match their digest; {remedy}"
                )


def _read(path: Path) -> Any:
    """What `write_artifact` was given, and nothing that it could not have been given.

    Raises anything for any other file, in time and memory of the order of its size.
    """
    size = path.stat().st_size
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        declared = sum(max(entry.file_size, entry.compress_size) for entry in entries)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        # What is compressed, or lies in the file twice, can be any size once it is read.
        if not stored or declared > size or len(names) != len(entries):
            raise ValueError("the archive is not as torch writes it")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if archive.read(folder + "byteorder") != b"little":
            raise ValueError("the numbers have another order of bytes")
        if archive.getinfo(pickled).file_size > MAX_PICKLE:
            raise ValueError("the pickle is too long")
        collecting = gc.isenabled()
        gc.disable()  # a tree holds no garbage, and millions of lists would be walked in vain
        try:
            value = _Reader(archive, file, folder).run(archive.read(pickled))
        finally:
            if collecting:
                gc.enable()
    _check(value, MAX_DEPTH)
    return value


class _Storage(NamedTuple):
    """Where a pickle says that the numbers of a tensor are."""

    word: str
    dtype: torch.dtype
    key: str
    place: str
    numbers: int


class _Reader:
    """Runs the few instructions of `torch.save`'s pickles (`pickletools` explains them all).

    Only names and texts are remembered, so nothing else can be used twice: the value is a tree no
    larger than the pickle.
    """

    def __init__(self, archive: zipfile.ZipFile, file: io.BufferedReader, folder: str) -> None:
        self.archive = archive
        self.file = file
        self.folder = folder
        self.used: set[str] = set()
        self.names: dict[str, Any] = {f"torch {name}": dtype for name, dtype in DTYPES.items()}
        self.names["torch._utils _rebuild_tensor_v2"] = self._tensor
        self.names["collections OrderedDict"] = lambda: None  # of hooks, always empty

    def run(self, program: bytes) -> Any:
        """The value that a pickle builds.

        Raises anything for a pickle that `torch.save` does not write.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        argument: Any
        room = MAX_PICKLE  # for texts that are used again

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
                        raise ValueError("a name is no plain value")
                    _of_type(dict, stack[-1]).update(zip(items[::2], items[1::2], strict=True))
                case "BINPUT" | "LONG_BINPUT":
                    if isinstance(stack[-1], str | torch.dtype) or callable(stack[-1]):
                        memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                    room -= len(stack[-1]) if type(stack[-1]) is str else 0
                    if room < 0:
                        raise ValueError("the same texts are used over and over")
                case "GLOBAL":
                    stack.append(self.names[argument])
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
        """The tensor that owns exactly the numbers of a storage."""
        word, dtype, key, place, count = _of_type(_Storage, storage)
        if len(shape) > MAX_DEPTH or not all(type(size) is int for size in (*shape, *strides)):
            raise ValueError("a tensor has no shape")
        if key in self.used or math.prod(shape) != count:
            raise ValueError("a tensor is not alone with its numbers")
        expected = tuple(math.prod(shape[first:]) for first in range(1, len(shape) + 1))
        rest = (word, place, offset, gradient, hooks)
        if rest != ("storage", "cpu", 0, False, None) or (count and strides != expected):
            raise ValueError("a tensor is not stored as it is written")
        self.used.add(key)
        entry = self.archive.getinfo(f"{self.folder}data/{_of_type(str, key)}")
        if entry.file_size != count * dtype.itemsize:
            raise ValueError(f"{entry.file_size} bytes are not {count} numbers")
        if not count:
            return torch.empty(shape, dtype=dtype)
        # Past zipfile, which would copy the bytes and sum them up; the digest notices damage.
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
    """Refuse what no honest file holds: other types and endless nesting."""
    if depth < 0:
        raise ValueError("the values are nested too deep")
    if type(value) in (dict, list):
        for item in value.values() if type(value) is dict else value:
            _check(item, depth - 1)
    elif type(value) is not torch.Tensor and type(value) not in PLAIN:
        raise ValueError(f"a {type(value).__name__} is no plain value")


def _canonical(value: Any, texts: dict[str, str]) -> Any:
    # Pickle writes an object it meets again as a reference, and torch a tensor's whole storage:
    # so equal texts become one object, and every tensor owns exactly its numbers.
    if isinstance(value, dict):
        return {_canonical(key, texts): _canonical(value[key], texts) for key in value}
    if isinstance(value, list | tuple):
        return [_canonical(item, texts) for item in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone(memory_format=torch.contiguous_format)
    # A subclass (numpy's numbers, torch's version) would be written as a class and never load.
    assert type(value) in PLAIN, f"{value!r} is no plain value"
    return texts.setdefault(value, value) if isinstance(value, str) else value


def content_digest(content: Any) -> str:
    """SHA-256 of nested dicts, lists, tensors and plain values, by their values alone."""
    digest = hashlib.sha256()
    _update(digest, content)
    return digest.hexdigest()


def _update(digest: Any, value: Any) -> None:
    if isinstance(value, dict):
        digest.update(f"dict {len(value)}\n".encode())
        for key in value:
            _update(digest, key)
            _update(digest, value[key])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}\n".encode())
        for item in value:
            _update(digest, item)
    elif isinstance(value, torch.Tensor):
        digest.update(f"tensor {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    else:
        digest.update(f"{type(value).__name__} {value!r}\n".encode())
