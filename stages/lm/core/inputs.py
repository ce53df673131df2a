"""What a stage began with: its code, its settings and its files, compared when it ends.

DVC digests a stage's dependencies after the stage has run. If one was edited meanwhile, DVC would
record the new version as the one that the outputs were made from. So a stage that finds a change
fails, and DVC records nothing.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import sha256_file
from .paths import PARAMS, ROOT, shown
from .yaml_text import parse_yaml

Version = tuple[int, int, int]
"""Inode, size and time of change (ns) of a file."""


def files_in(path: Path) -> list[Path]:
    """The file at `path`, or all files in the folder at `path`; none where there is nothing."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return [
        Path(folder, name)
        for folder, _, names in os.walk(path)
        if not folder.endswith("__pycache__")
        for name in names
    ]


def code_digests() -> dict[str, str]:
    """SHA-256 of every file of the library and the stages, by its path from the project's root."""
    return {shown(path): sha256_file(path) for path in files_in(ROOT / "stages")}


CODE = code_digests()
"""Those of the code that this process runs: `stages/__init__.py` imports this module first, so that
an edit during the seconds of further imports counts as a change."""


class FileVersions:
    """Files and folders of data as they are now, for a comparison later.

    A file that was replaced by an equal one counts as changed too: who reads it twice may have
    read something else in between.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)
        self.versions = self._now()

    def _now(self) -> dict[Path, Version]:
        found = {}
        for path in self.paths:
            for file in files_in(path):
                stat = file.stat()
                found[file] = stat.st_ino, stat.st_size, stat.st_mtime_ns
        return found

    def check(self) -> None:
        """Compare.

        Raises:
            UserError: a file was written, replaced, added or removed.
        """
        for path, _ in self.versions.items() ^ self._now().items():
            raise changed(f"{shown(path)} was written, replaced or removed")


class StageInputs:
    """The dependencies and settings that `dvc.yaml` names for the stage with a command."""

    def __init__(self, command: str) -> None:
        pipeline = _read_yaml(ROOT / "dvc.yaml").get("stages", {})
        stage: dict[str, Any] = next(
            (one for one in pipeline.values() if one["cmd"] == command), {}
        )
        deps = stage.get("deps", [])
        self.code = [dep for dep in deps if dep.startswith("stages/")]
        self.files = FileVersions(ROOT / dep for dep in deps if dep not in self.code)
        self.sections = stage.get("params", [])
        self.settings = self._read_settings()

    def _read_settings(self) -> dict[str, Any]:
        """The values under each section, by `section.key`."""
        found: dict[str, Any] = {}
        document = _read_yaml(PARAMS) if self.sections else {}
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
        settings = self._read_settings()
        for name in self.settings.keys() | settings.keys():
            old, new = self.settings.get(name), settings.get(name)
            if repr(old) != repr(new):  # 1, 1.0 and true are equal
                raise changed(f"{name} in {PARAMS.name} was changed from {old!r} to {new!r}")
        for name, _ in CODE.items() ^ code_digests().items():
            if any(name == dep or name.startswith(f"{dep}/") for dep in self.code):
                raise changed(f"{name} was edited, added or removed")


def _read_yaml(path: Path) -> dict[str, Any]:
    document = parse_yaml(path.read_text("utf-8"), path.name) if path.exists() else None
    return document if isinstance(document, dict) else {}


def changed(what: str) -> UserError:
    """The error for a change while a stage ran."""
    return UserError(
        f"{what} while this stage ran, so nothing is recorded. Run the same command again; it "
        "takes the present version."
    )
