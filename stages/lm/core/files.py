"""Reading files so that an error of the system is not taken for damage, and writing them so that a
crash leaves the old one or the new one, never a part of either."""

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any, BinaryIO

from .errors import UserError
from .paths import shown

MADE = "`dvc repro` makes it."
"""What is said of a missing output of the pipeline."""
MAKE_AGAIN = "if `dvc repro` made it, move it elsewhere and run that command again."
"""The remedy for a damaged one. Nothing is lost by it, whatever the file is."""
_MEND = {
    errno.EACCES: "Give yourself the permission to read it",
    errno.EPERM: "Give yourself the permission to read it",
    errno.EIO: "Check the disk, or the connection to it",
    errno.EISDIR: "A folder is where a file should be; move it elsewhere",
    errno.ELOOP: "Links lead in a circle; make one of them lead to the file",
    errno.EMFILE: "Too many files are open; raise the limit (`ulimit -n`)",
    errno.ENFILE: "Too many files are open; close other programs",
    errno.ENOMEM: "Close other programs, or take a smaller file",
}
"""What a user does about an error of the system."""


class UnreadableError(UserError):
    """The system could not reach or read a file, which itself may be sound."""


@contextmanager
def read_errors(path: Path, missing: str = MADE) -> Iterator[None]:
    """Turn an error of the system in the block into a sentence that says `path` was not read.

    The file itself may be sound, so the remedy is never to remove it. `missing` ends the sentence
    about a file that is not there.

    Raises:
        UnreadableError: the system could not reach or read the file.
        UserError: it is missing.
    """
    try:
        yield
    except FileNotFoundError as error:
        link = dangling_link(path)
        if link is None:
            raise UserError(f"{shown(path)} is missing; {missing}") from error
        raise UnreadableError(
            f"{shown(path)} is missing: {shown(link)} is a link to {link.readlink()}, which is not "
            "there. Mount its drive or bring it back, then run the same command again."
        ) from error
    except (OSError, MemoryError) as error:
        why = error.strerror if isinstance(error, OSError) else os.strerror(errno.ENOMEM)
        number = error.errno if isinstance(error, OSError) else errno.ENOMEM
        raise UnreadableError(
            f"{shown(path)} could not be read ({why or error}) and is left as it is. "
            f"{_MEND.get(number or 0, 'Mend that')}, then run the same command again."
        ) from error


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


def dangling_link(path: Path) -> Path | None:
    """The link to nothing, such as a drive that is not mounted, that `path` is or leads through."""
    links = (link for link in (path, *path.parents) if link.is_symlink())
    return next((link for link in links if not link.exists()), None)


def is_there(path: Path) -> bool:
    """Whether `path` names anything, if only a link to nothing.

    Raises:
        UserError: the system cannot tell, or `path` leads through such a link.
    """
    with read_errors(path):
        try:
            path.lstat()
        except FileNotFoundError:
            if dangling_link(path):
                raise
            return False
    return True


def temporary_name(path: Path) -> Path:
    """A new name beside `path`, for what will take its place when it is complete."""
    return path.with_name(f".{path.name}.{token_hex(4)}.tmp")


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an exception.

    The bytes go to a new file in the same folder, are synced to disk and then renamed. What killed
    processes left of theirs is then removed. A link at `path` is replaced, and what it leads to
    stays as it is: DVC may have linked an output to its cache.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    temporary = temporary_name(path)
    with write_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):  # it may not exist, or its folder may be a file or read-only
                temporary.unlink()
            raise
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp")
    with suppress(OSError):
        for other in path.parent.iterdir():
            if left.fullmatch(other.name):
                other.unlink()


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


def read_json(path: Path, missing: str = MADE, remedy: str = MAKE_AGAIN) -> Any:
    """The value in a JSON file; `missing` and `remedy` end the sentences about what is wrong.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    with read_errors(path, missing):
        text = path.read_bytes()
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{shown(path)} is not readable as JSON ({error}); it was damaged or edited; {remedy}"
        ) from error


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        UserError: it cannot be read.
    """
    with read_errors(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
