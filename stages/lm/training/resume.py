"""The state of an unfinished training run, and which run it belongs to.

The fingerprint of a run is a digest of everything its result depends on. Its state is kept in
`<resume folder>/<fingerprint>/state.pt`, which is no output of DVC: DVC deletes outputs before a
stage runs. The same settings, data and code continue the run; others start one of their own.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.artifact import read_artifact, write_artifact
from ..core.errors import UserError
from ..core.files import UnreadableError, is_there, read_json, write_errors, write_json
from ..core.inputs import CODE
from ..core.paths import shown

KIND = "training state"
VERSION = 3
FORGED = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)
"""What values of other types and sizes than a state's can raise."""
KEPT = 3
"""Unfinished runs of other settings that are kept."""


def code_digests() -> dict[str, str]:
    """SHA-256 of every file of the project that this process has imported, by its path."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("stages.")]
    files = [getattr(module, "__file__", None) for module in (*modules, sys.modules["__main__"])]
    names = {shown(Path(file).resolve()) for file in files if file}
    # The package files hold next to nothing.
    return {name: CODE[name] for name in sorted(names & CODE.keys()) if "__init__" not in name}


@dataclass(frozen=True)
class RunIdentity:
    """Everything that a run's result depends on, as a flat dict of names and plain values."""

    ingredients: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """The first 16 hexadecimal digits of the ingredients' SHA-256."""
        text = json.dumps({"version": VERSION, **self.ingredients}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def difference(self, other: dict[str, Any]) -> str:
        """In words, what differs from another run's ingredients."""
        changes = []
        for name in sorted(self.ingredients.keys() | other.keys()):
            old, new = other.get(name), self.ingredients.get(name)
            if old == new:
                continue
            is_digest = isinstance(new or old, str) and len(str(new or old)) == 64
            changes.append(f"{name} changed" + ("" if is_digest else f" from {old!r} to {new!r}"))
        return ", ".join(changes)


class ResumeStore:
    """Loads and saves the state of one run, and removes old states of others."""

    def __init__(self, folder: Path, identity: RunIdentity) -> None:
        self.folder = folder
        self.identity = identity
        self.path = folder / identity.fingerprint / "state.pt"

    def load(
        self, check: Callable[[dict[str, Any]], None] = lambda content: None
    ) -> tuple[dict[str, Any] | None, str]:
        """The state to continue from, or None, and a sentence that says which and why.

        A state that is damaged, or that `check` raises for, is set aside under another name, never
        overwritten.

        Raises:
            UnreadableError: the system could not read the file; the state itself may be sound.
        """
        if is_there(self.path):
            try:
                content = read_artifact(self.path, {KIND: VERSION})[1]
                try:
                    check(content)
                except FORGED as error:
                    name = shown(self.path)
                    raise UserError(f"{name} is no state of this run ({error}).") from error
                return content, "continuing"
            except UnreadableError:
                raise
            except UserError as error:
                aside = self._set_aside()
                return None, f"starting fresh: {error} It was moved to {shown(aside)}."
        others = self._others()
        if not others:
            return None, "starting fresh: there is no unfinished run"
        recorded = others[0].parent / "run.json"
        try:
            difference = self.identity.difference(dict(read_json(recorded)))
        except (UserError, ValueError, TypeError):
            difference = f"{shown(recorded)} is unreadable"
        return None, f"starting fresh: since the last run {difference} (its state is kept)"

    def save(self, content: dict[str, Any]) -> None:
        """Write the state, whole or not at all; the first save removes old runs.

        Removed are the states of other runs but the `KEPT` newest, and folders without a state,
        left by runs that were killed before their first save.
        """
        fresh = not self.path.exists()
        if fresh:
            write_json(self.path.parent / "run.json", self.identity.ingredients)
        write_artifact(self.path, KIND, VERSION, content)
        if fresh:
            kept = {path.parent for path in (self.path, *self._others()[:KEPT])}
            for folder in self.folder.glob("[0-9a-f]" * 16):  # only names this store makes
                if folder not in kept:
                    _remove_unused(folder)

    def _others(self) -> list[Path]:
        """States of other runs, newest first."""
        states = [path for path in self.folder.glob("*/state.pt") if path != self.path]
        return sorted(states, key=lambda path: path.stat().st_mtime_ns, reverse=True)

    def _set_aside(self) -> Path:
        number = 1
        while (aside := self.path.with_name(f"state.damaged-{number}.pt")).exists():
            number += 1
        self.path.rename(aside)
        return aside


def _remove_unused(folder: Path) -> None:
    # A run that is training holds its lock, and its folder must stay. Holding the lock while the
    # folder is deleted keeps a run from starting in it.
    with suppress(OSError), FileLock(folder / "lock", blocking=False):
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def only_trainer(path: Path) -> Iterator[None]:
    """Hold the lock at `path` for the block.

    Raises:
        UserError: another process holds it. Killing `dvc` alone leaves its trainer running.
    """
    holder = path.with_name(path.name + ".pid")
    lock = FileLock(path, blocking=False)
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            try:
                pid = holder.read_text().strip() or "unknown"
            except OSError:  # the holder has not yet written its pid, or is just ending
                pid = "unknown"
            raise UserError(
                f"another training process (pid {pid}) is using {shown(path.parent)}; wait for it "
                f"to end or stop it with `kill {pid}`, then run the same command again: it "
                "continues."
            ) from None
    try:
        with write_errors(holder):
            holder.write_text(f"{os.getpid()}\n")
        yield
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()
