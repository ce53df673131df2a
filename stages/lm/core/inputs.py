"""What a stage began with: its code, its settings and its files, compared when it ends.

DVC digests a stage's dependencies after the stage has run. If one was edited meanwhile, DVC would
record the new version as the one that the outputs were made from. So a stage that finds a change
fails, and DVC records nothing.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_errors, sha256_file
from .paths import PARAMS, ROOT, shown
from .yaml_text import parse_yaml

Version = tuple[int, int, int]
"""Inode, size and time of change (ns): tell two versions of a file apart without reading it."""


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
        # Missing is also a file that is removed at this moment.
        with read_errors(file), suppress(FileNotFoundError):
            stat = file.stat()
            found[file] = stat.st_ino, stat.st_size, stat.st_mtime_ns
    return found


CODE_VERSIONS = versions_in(ROOT / "stages")
CODE = {shown(path): sha256_file(path) for path in CODE_VERSIONS}
"""SHA-256 of the project's code that this process runs, by path from the project's root.

`stages/__init__.py` imports this module before all others of the project, so that an edit during
the seconds of further imports counts as a change.
"""


class FileVersions:
    """Files and folders of data as they are now, for a comparison later.

    A file that was replaced by an equal one counts as changed too: who reads it twice may have
    read something else in between.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)
        self.versions = self._now()

    def _now(self) -> dict[Path, Version]:
        return {file: one for path in self.paths for file, one in versions_in(path).items()}

    def check(self) -> None:
        """Compare.

        Raises:
            UserError: a file was written, replaced, added or removed.
        """
        for path, _ in self.versions.items() ^ self._now().items():
            raise changed(f"{shown(path)} was written, replaced or removed")


class StageInputs:
    """The dependencies and settings that `dvc.yaml` lists for the stage with a command."""

    def __init__(self, command: str) -> None:
        stages = _read_yaml(_bytes(ROOT / "dvc.yaml"), "dvc.yaml").get("stages", {})
        stage: dict[str, Any] = next((one for one in stages.values() if one["cmd"] == command), {})
        deps = stage.get("deps", [])
        self.code = [ROOT / dep for dep in deps if dep.startswith("stages/")]
        self.files = FileVersions(ROOT / dep for dep in deps if not dep.startswith("stages/"))
        self.sections = stage.get("params", [])
        self.params = _bytes(PARAMS) if self.sections else b""
        self.settings = self._settings(self.params)

    def _settings(self, params: bytes) -> dict[str, Any]:
        """The values under each section, by `section.key`."""
        found: dict[str, Any] = {}
        document = _read_yaml(params, PARAMS.name)
        for section in self.sections:
            values = document.get(section)
            pairs = values.items() if isinstance(values, dict) else [("", values)]
            found |= {f"{section}.{key}".rstrip("."): value for key, value in pairs}
        return found

    def check(self) -> None:
        """Compare with what there is now.

        Raises:
            UserError: something was changed.
        """
        self.files.check()
        now = versions_in(ROOT / "stages")
        for path, _ in CODE_VERSIONS.items() ^ now.items():
            same = path in now and sha256_file(path) == CODE.get(shown(path))
            if not same and any(path.is_relative_to(dep) for dep in self.code):
                raise changed(f"{shown(path)} was edited, added or removed")
        params = _bytes(PARAMS) if self.sections else b""
        if params == self.params:
            return
        settings = self._settings(params)
        for name in self.settings.keys() | settings.keys():
            old, new = self.settings.get(name), settings.get(name)
            if repr(old) != repr(new):  # 1, 1.0 and true are equal
                raise changed(f"{name} in {PARAMS.name} was changed from {old!r} to {new!r}")


def _bytes(path: Path) -> bytes:
    with read_errors(path), suppress(FileNotFoundError):
        return path.read_bytes()
    return b""


def _read_yaml(data: bytes, name: str) -> dict[str, Any]:
    document = parse_yaml(data.decode("utf-8", "replace"), name)
    return document if isinstance(document, dict) else {}


def changed(what: str) -> UserError:
    """The error for a change while a stage ran."""
    return UserError(
        f"{what} while this stage ran, so nothing is recorded. Run the same command again; it "
        "takes the present version."
    )
