"""The files in a folder, in an order that no system changes, and why others are left out."""

import os
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown

MAX_DEPTH = 50
MAX_FILES = 1_000_000
NAMED = 3
"""So many of the files that are left out for one reason are named."""
_IN_DVC_CACHE = re.compile(r"[/\\]files[/\\]md5[/\\][0-9a-f]{2}[/\\][0-9a-f]{30}$")
"""Where DVC's links lead if it is set to link files instead of copying them."""
_OF_TOOLS = re.compile(r"\.gitignore|\.gitkeep|\.gitattributes|.*\.dvc")


@dataclass
class LeftOut:
    """The names of what is not used, by reason."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Remember that `name` is not used because of `reason`, such as `an image`."""
        self.reasons.setdefault(reason, []).append(name)

    def lines(self) -> list[str]:
        """One line for each reason."""
        return [f"not used: {listed(names)}: {reason}" for reason, names in self.reasons.items()]


def listed(names: list[str]) -> str:
    """The first of some names, and how many there are beside them."""
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True)
class Found:
    """A file in the folder."""

    path: Path
    name: str
    """Relative to the folder, `/` between folders, as UTF-8 whatever the system has."""
    bytes: int


def files_in(folder: Path, left_out: LeftOut) -> list[Found]:
    """The files under a folder, sorted by name whatever the case and the language of the system.

    Nothing outside the folder is looked at: links are not followed, but those into DVC's cache.

    Raises:
        UserError: a folder cannot be read, or there are more than `MAX_FILES`.
    """
    found: list[Found] = []
    waiting = [(folder, "", 0)]
    while waiting:
        place, prefix, depth = waiting.pop()
        with read_errors(place), os.scandir(place) as entries:
            there = sorted(entries, key=lambda entry: entry.name)
        if what := _model_folder({entry.name for entry in there}):
            left_out.add(what, prefix.rstrip("/") or shown(folder))
            continue
        for entry in there:
            name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
            with read_errors(Path(entry.path)):
                if reason := _reason(entry, folder, depth):
                    left_out.add(reason, name)
                elif _OF_TOOLS.fullmatch(entry.name):
                    continue
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((Path(entry.path), f"{name}/", depth + 1))
                else:
                    found.append(Found(Path(entry.path), name, entry.stat().st_size))
            if len(found) > MAX_FILES:
                raise UserError(
                    f"{shown(folder)} holds more than {MAX_FILES:,} files; join them, for example "
                    'as lines {"text": "..."} of one .jsonl file.'
                )
    return sorted(found, key=lambda file: _order(file.name))


def _order(name: str) -> tuple[str, str]:
    return unicodedata.normalize("NFC", name).casefold(), name


def _reason(entry: os.DirEntry[str], folder: Path, depth: int) -> str:
    """Why something in a folder is not used; "" if it may be."""
    if entry.is_symlink():
        target = os.path.realpath(entry.path)
        if not Path(entry.path).exists():
            return "a link to nothing"
        if _IN_DVC_CACHE.search(target) and Path(target).is_file():
            return ""
        if Path(target).is_relative_to(folder.resolve()):
            return "a link to what is in this folder anyway"
        return "a link that leaves the folder; put the file itself there (`cp -rL`)"
    if entry.is_dir():
        if entry.name.startswith("."):
            return "hidden"
        return f"a folder below {MAX_DEPTH} others" if depth >= MAX_DEPTH else ""
    if not entry.is_file():
        return "a pipe, socket or device"
    if entry.name.startswith(".") and not _OF_TOOLS.fullmatch(entry.name):
        return "hidden"
    return ""


def _model_folder(names: set[str]) -> str:
    if "adapter_config.json" in names:
        return "a folder with adapters (LoRA), which is no text"
    weights = (".safetensors", ".bin", ".pt", ".gguf")
    if "config.json" in names and any(name.endswith(weights) for name in names):
        return "a folder with a model; to start from it, move it into data/base/"
    return ""
