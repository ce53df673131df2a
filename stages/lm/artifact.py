"""One file of tensors and plain values that says what it is and notices damage.

The common ground of the checkpoint, the quantized model and the resume state: written by
`torch.save`, so that every program that knows torch opens it, and read by a reader of our own that
can build nothing but what we write. A forged file runs no code, whatever the version of torch.
"""

import hashlib
import io
import math
import pickle
import pickletools
import zipfile
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
OPCODES = """
    PROTO STOP MARK EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1
    TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET BINUNICODE BININT BININT1 BININT2 LONG1
    BINFLOAT NEWTRUE NEWFALSE NONE GLOBAL REDUCE BINPERSID
"""
"""All that `torch.save` writes for tensors and plain values."""
MAX_DEPTH = 64
"""Dicts and lists within each other."""


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


def read_artifact(path: Path, kinds: dict[str, int]) -> tuple[str, dict[str, Any]]:
    """The kind and content of a file, which must be one of `kinds` (name -> version).

    Raises:
        UserError: the file is missing, damaged, forged, or of another kind or version.
    """
    name = shown(path)
    try:
        document = _read(path)
        if not isinstance(document, dict) or set(document) != KEYS:
            raise ValueError("the parts of an artifact are not there")
    except FileNotFoundError:
        raise UserError(f"{name} is missing; `dvc repro` makes it.") from None
    except Exception as error:  # a damaged or foreign file can raise nearly every type
        raise UserError(f"{name} is damaged, or is no file of this project; {_REMEDY}") from error
    kind, version, content = document["format"], document["version"], document["content"]
    if not isinstance(kind, str) or kinds.get(kind) != version:
        expected = " or ".join(f"{kind} {version}" for kind, version in kinds.items())
        raise UserError(f"{name} holds {kind} {version}, but {expected} is needed; {_REMEDY}")
    if content_digest(content) != document["digest"]:
        raise UserError(f"{name} is damaged: its contents do not match their digest; {_REMEDY}")
    return kind, content


_REMEDY = "remove it and run `dvc repro`, or restore it with `dvc checkout`."


class _Storage(NamedTuple):
    """The numbers of one tensor in the file."""

    dtype: torch.dtype
    data: bytes


def _read(path: Path) -> Any:
    """What `write_artifact` was given, and nothing that it could not have been given.

    Raises anything for any other file, in time and memory of the order of its size.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename for entry in entries}
        declared = sum(entry.file_size for entry in entries)
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        # What is compressed, or lies in the file twice, can be any size once it is read.
        if not stored or declared > size or len(names) != len(entries):
            raise ValueError("the archive is not as torch writes it")
        (pickled,) = (name for name in names if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")
        if archive.read(folder + "byteorder") != b"little":
            raise ValueError("the numbers have another order of bytes")
        program = archive.read(pickled)
        found = {opcode.name for opcode, _, _ in pickletools.genops(program)}
        if foreign := found - set(OPCODES.split()):
            raise ValueError(f"the pickle holds {foreign}")
        value = _Reader(io.BytesIO(program), archive, folder).load()
    _check(value, MAX_DEPTH, [len(program)])
    return value


class _Reader(pickle._Unpickler):  # type: ignore[misc, name-defined]
    """Reads `torch.save`'s pickles; every name in one stands for something harmless of ours.

    In Python, because the one in C makes room for as many objects as a file says it has.
    """

    def __init__(self, program: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(program, encoding="utf-8")
        self.archive = archive
        self.folder = folder
        self.seen: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle means."""
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise ValueError(f"the pickle names {module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        """The numbers that the pickle refers to, each only once."""
        word, dtype, key, place, count = pid
        data = self.archive.read(f"{self.folder}data/{key}")
        if (word, place, key in self.seen) != ("storage", "cpu", False):
            raise ValueError(f"storage {pid} is not as it is written")
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"storage {key} has {len(data)} bytes, not {count} numbers")
        self.seen.add(key)
        return _Storage(dtype, data)


def _rebuild_tensor(
    storage: _Storage, offset: int, shape: Any, strides: Any, requires_grad: bool, hooks: Any
) -> torch.Tensor:
    """The tensor that owns exactly the numbers of a storage."""
    expected = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
    count = math.prod(shape)
    whole = count * storage.dtype.itemsize == len(storage.data)
    if offset or requires_grad or hooks or not whole or (count and strides != expected):
        raise ValueError(f"a tensor of shape {shape} is not stored as it is written")
    if not count:
        return torch.empty(shape, dtype=storage.dtype)
    raw = torch.from_numpy(np.frombuffer(storage.data, np.uint8).copy())
    return raw.view(storage.dtype).reshape(shape)


def _check(value: Any, depth: int, budget: list[int]) -> None:
    """Refuse what no honest file holds: other types, endless nesting, values used over and over.

    Every value of an honest file takes at least one byte of its pickle; `budget` counts them down.
    """
    budget[0] -= 1
    if depth < 0 or budget[0] < 0:
        raise ValueError("there are more values than the file can hold")
    if type(value) is dict:
        for key, item in value.items():
            if type(key) not in PLAIN:
                raise ValueError(f"{key!r} is no name")
            _check(item, depth - 1, budget)
    elif type(value) is list:
        for item in value:
            _check(item, depth - 1, budget)
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
