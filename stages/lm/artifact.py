"""One file of tensors and plain values that says what it is and notices damage.

The common ground of the checkpoint, the quantized model and the resume state. Files are read
with torch's restricted unpickler (`weights_only=True`), so loading one runs no code.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .files import atomic_writer
from .paths import shown

KEYS = {"format", "version", "digest", "content"}
PLAIN = {str, int, float, bool, type(None)}


def write_artifact(path: Path, kind: str, version: int, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, text, and dicts and lists of them), whole or not at all.

    The bytes depend on nothing but the arguments and torch's version.
    """
    digest = content_digest(content)
    document = {"format": kind, "version": version, "digest": digest, "content": content}
    document = _canonical(document, {})
    with atomic_writer(path) as file:
        # Through a file object: given a path, torch would put the temporary name into the bytes.
        torch.save(document, file)


def read_artifact(path: Path, kinds: dict[str, int]) -> tuple[str, dict[str, Any]]:
    """The kind and content of a file, which must be one of `kinds` (name -> version).

    Raises:
        UserError: the file is missing, damaged, forged, or of another kind or version.
    """
    name = shown(path)
    try:
        document = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{name} is missing; `dvc repro` makes it.") from None
    except Exception as error:  # torch raises nearly every type for a damaged or foreign file
        raise UserError(f"{name} is damaged, or is no file of this project; {_REMEDY}") from error
    if not isinstance(document, dict) or set(document) != KEYS:
        raise UserError(f"{name} is no file of this project; {_REMEDY}")
    kind, version, content = document["format"], document["version"], document["content"]
    if not isinstance(kind, str) or kinds.get(kind) != version:
        expected = " or ".join(f"{kind} {version}" for kind, version in kinds.items())
        raise UserError(f"{name} holds {kind} {version}, but {expected} is needed; {_REMEDY}")
    if content_digest(content) != document["digest"]:
        raise UserError(f"{name} is damaged: its contents do not match their digest; {_REMEDY}")
    return kind, content


_REMEDY = "remove it and run `dvc repro`, or restore it with `dvc checkout`."


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
