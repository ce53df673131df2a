"""One file of tensors and plain values that says what it is and notices damage.

The format of the checkpoint, the quantized model and the resume state. It is that of `torch.save`,
so every program that knows torch opens it, and holds one dict: `format` (a name), `version`,
`digest` (SHA-256 of the content) and `content`. It is read by `pickle_reader`, so that a forged
file runs no code.
"""

import errno
import hashlib
import pickletools
import zipfile
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import UserError
from .files import MAKE_AGAIN, atomic_writer, read_errors
from .paths import shown
from .pickle_reader import MAX_PICKLE, PLAIN, read_tensors_file

KEYS = {"format", "version", "digest", "content"}
CHECKPOINT_FORMAT = ("checkpoint", 2)
"""Kind and version of `checkpoint.pt`: here, so that `tokenize` reads one without model code."""
ID_DIGITS = 16
"""Hexadecimal digits of the digest that name an artifact in `metrics/`."""


class Artifact(NamedTuple):
    """What a file holds."""

    kind: str
    content: dict[str, Any]
    id: str
    """The first `ID_DIGITS` of the content's digest."""


def artifact_id(path: Path) -> str | None:
    """The `id` that a file claims, without reading its tensors; None where it is no artifact."""
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                operations = pickletools.genops(file.read(MAX_PICKLE))
        texts = (argument for _, argument, _ in operations if type(argument) is str)
        return next(text for key in texts if key == "digest" for text in texts)[:ID_DIGITS]
    except Exception:  # a damaged or foreign file can raise nearly every type
        return None


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
            # After a failed write torch also fails to close its archive; show the first error.
            raise (error.__context__ or error) from None


def read_artifact(
    path: Path, kinds: dict[str, int], remedy: str = MAKE_AGAIN
) -> tuple[str, dict[str, Any]]:
    """The kind and content of a file, which must be one of `kinds` (name -> version).

    Raises:
        UserError: the file is missing, damaged, forged, or of another kind or version. `remedy`
            ends the message.
    """
    with opened_artifact(path, kinds, remedy) as artifact:
        return artifact.kind, artifact.content


@contextmanager
def opened_artifact(
    path: Path, kinds: dict[str, int], remedy: str = MAKE_AGAIN
) -> Generator[Artifact, None, None]:
    """What `read_artifact` reads, to be used while a thread still computes its digest.

    The digest is verified on exit, and a mismatch replaces any error raised in the block. Until
    then treat the tensors as untrusted, and change none of them.
    """
    name = shown(path)
    try:
        with read_errors(path):
            document = _document(path)
        if type(document) is not dict or set(document) != KEYS:
            raise ValueError("the parts of an artifact are not there")
        kind, version, content = document["format"], document["version"], document["content"]
        if (type(kind), type(version), type(content)) != (str, int, dict):
            raise ValueError("the parts of an artifact are of other types")
    except UserError:
        raise
    except Exception as error:  # a damaged or foreign file can raise nearly every type
        raise UserError(f"{name} is damaged, or is no file of this project; {remedy}") from error
    if kinds.get(kind) != version:
        expected = " or ".join(f"{kind} {version}" for kind, version in kinds.items())
        raise UserError(f"{name} holds {kind} {version}, but {expected} is needed; {remedy}")
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(content_digest, content)
        try:
            yield Artifact(kind, content, str(document["digest"])[:ID_DIGITS])
        finally:
            if digest.result() != document["digest"]:
                raise UserError(
                    f"{name} is damaged: its contents do not match their digest; {remedy}"
                )


def _document(path: Path) -> Any:
    try:
        return read_tensors_file(path)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a damaged archive led to an impossible offset
            raise ValueError from error
        raise


def _canonical(value: Any, texts: dict[str, str]) -> Any:
    """`value` so that equal values give equal bytes; `texts` holds the texts met so far."""
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
