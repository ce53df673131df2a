"""Digests of the project's code as this process runs it.

`stages/__init__.py` imports this module before all others of the project. An edit during the
seconds in which the rest is imported then counts as a change. What a full disk left of their
compiled form is removed here, before it fails to be imported.
"""

import hashlib
import marshal
import os
import sys
from contextlib import suppress
from pathlib import Path

Version = tuple[int, int, int]
"""Inode, size and time of change (ns): tell two versions of a file apart without reading it."""

STAGES = Path(__file__).resolve().parents[2]


def versions_in(path: Path) -> dict[Path, Version]:
    """Of the file at `path`, or of all files in the folder at `path`; empty if it is missing."""
    files = [path]
    if path.is_dir():
        files = [
            Path(folder, name)
            for folder, _, names in os.walk(path)
            if not folder.endswith("__pycache__")
            for name in names
        ]
    found = {}
    for file in files:
        with suppress(FileNotFoundError):  # also a file that is removed at this moment
            stat = file.stat()
            found[file] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


def remove_cut_bytecode(folder: Path) -> None:
    """Remove compiled code of this Python in `folder` that is not whole.

    Python 3.11 writes it in part on a full disk, and from then on fails to import it.
    """
    for path in folder.rglob(f"__pycache__/*.{sys.implementation.cache_tag}.pyc"):
        with suppress(OSError):
            try:
                marshal.loads(path.read_bytes()[16:])  # behind the header
            except (EOFError, ValueError, TypeError):
                path.unlink()


remove_cut_bytecode(STAGES)
VERSIONS = versions_in(STAGES)
SHA256 = {
    str(path.relative_to(STAGES.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in VERSIONS
}
"""By path from the project's root."""
