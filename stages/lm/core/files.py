"""Writing files so that a crash leaves the old one or the new one, never a part of either."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError
from .paths import shown


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turn an `OSError` raised in the block into a sentence that says `path` was not written.

    Raises:
        UserError: the disk is full or broken, or `path` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(path)} could not be written ({error.strerror or error}); its previous "
            "contents, if any, are untouched. Free some disk space or check the folder's "
            "permissions, then run the same command again."
        ) from error


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an exception.

    The bytes go to `.NAME.tmp` in the same folder, are synced to disk and then renamed. The
    temporary name is fixed, so the next process overwrites what a killed one left.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # it may not exist, or its folder may be a file or read-only
                temporary.unlink()
            raise


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is on disk; Windows has no such call.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_writer(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with `\\n` line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{shown(path)} is missing; `dvc repro` makes it.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path)} is not readable as JSON ({error}); it was damaged or edited. "
            "Remove it and run `dvc repro`."
        ) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
