"""Reads the settings, metrics and models of DVC's experiments.

Reads through git and DVC's cache and takes no lock, so that a run may go on meanwhile.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.yaml_text import parse_yaml
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.settings.loader import read_params

REFS = "refs/exps/"
INTERNAL_REFS = (REFS + "exec/", REFS + "celery/", REFS + "apply/")
"""References under `REFS` that are not experiments."""

MAX_BYTES = 1_000_000
"""Of a file that is shown; those that the pipeline writes have a few thousand."""


@dataclass(frozen=True)
class Experiment:
    """One result of `dvc exp run`."""

    name: str
    revision: str
    changed: dict[str, tuple[Any, Any]]
    """Settings that differ from the workspace: key -> (workspace's value, experiment's value)."""


def experiments() -> tuple[list[Experiment], list[str]]:
    """Every experiment in this repository, the newest first; none where there is no git.

    Also a sentence on each `params.yaml` that cannot be read; what it changes is then not known.
    """
    notes = []
    ours: dict[str, Any] | None = None
    try:
        ours = flat(read_params(paths.PARAMS))
    except UserError as error:
        notes.append(str(error))
    found = []
    for revision, name in references():
        changed = {}
        try:
            theirs = settings_at(revision, name)
            changed = differences(theirs if ours is None else ours, theirs)
        except UserError as error:
            notes.append(str(error))
        found.append(Experiment(name, revision, changed))
    return found, notes


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of every setting that differs; None for one that is not there."""
    pairs = {key: (ours.get(key), theirs.get(key)) for key in ours | theirs}
    return {key: (our, their) for key, (our, their) in pairs.items() if our != their}


def references() -> list[tuple[str, str]]:
    """The revision and the name of every experiment."""
    listing = ("for-each-ref", "--format=%(objectname) %(refname)", REFS)
    # To sort by date git needs every object; in a damaged repository some are missing.
    lines = git(*listing, "--sort=-creatordate") or git(*listing) or ""
    pairs = [line.split(" ", 1) for line in lines.splitlines()]
    return [
        (revision, name.rpartition("/")[2])
        for revision, name in pairs
        if not name.startswith(INTERNAL_REFS)
    ]


def settings_at(revision: str, name: str) -> dict[str, Any]:
    """The settings of the experiment `name` by dotted key.

    Raises:
        UserError: its `params.yaml` is missing or cannot be read.
    """
    file = f"{paths.PARAMS.name} of experiment {name}"
    try:
        document = parse_yaml(at_revision(revision, paths.PARAMS) or "", file)
    except ValueError as error:
        raise UserError(f"{file}: {error}.") from error
    if not isinstance(document, dict):
        raise UserError(f"{file} is missing or holds no sections.")
    return flat(document)


def flat(document: dict[str, Any]) -> dict[str, Any]:
    """The values of a `params.yaml` by dotted key."""
    values: dict[str, Any] = {}
    for section, keys in document.items():
        if isinstance(keys, dict):
            values |= {f"{section}.{key}": value for key, value in keys.items()}
        else:
            values[section] = keys
    return values


def metrics(revision: str | None, path: Path) -> dict[str, Any]:
    """As `read_metrics`, but empty also where the file cannot be read."""
    try:
        return read_metrics(revision, path)
    except UserError:
        return {}


def read_metrics(revision: str | None, path: Path) -> dict[str, Any]:
    """A metrics file at an experiment's revision, or of the workspace (None); empty if missing.

    Raises:
        UserError: it cannot be read, or holds no figures.
    """
    problem = "it holds no figures"
    try:
        text = own_text(path) if revision is None else at_revision(revision, path)
        found = json.loads(text or "{}")
        if isinstance(found, dict):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error)
    raise UserError(f"{paths.shown(path)} cannot be read ({problem}).")


def load_experiment(revision: str, name: str) -> LoadedModel:
    """The quantized model of the experiment `name`, from DVC's cache or a remote.

    Raises:
        UserError: neither has it, or the file cannot be loaded.
    """
    from dvc.api import DVCFileSystem  # takes a second to import: only where it is needed
    from dvc.exceptions import DvcException

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / paths.QUANTIZED.name
        try:
            files = DVCFileSystem(str(paths.ROOT), rev=revision)
            files.get_file(str(paths.QUANTIZED.relative_to(paths.ROOT)), str(copy))
        except (OSError, DvcException) as error:
            raise UserError(
                f"the model of experiment {name} is not in DVC's cache ({error}); "
                f"`dvc exp apply {name}` and `dvc repro` make it again."
            ) from error
        return load_model(copy)


def own_text(path: Path) -> str:
    """The text of a file of the workspace.

    Raises:
        ValueError: it is larger than `MAX_BYTES`, or not UTF-8.
    """
    refuse_large(path.stat().st_size)
    return path.read_text("utf-8")


@lru_cache(maxsize=256)
def at_revision(revision: str, path: Path) -> str | None:
    """The text of a tracked file at a revision; None where it has no such file.

    Raises:
        ValueError: it is larger than `MAX_BYTES`.
    """
    name = f"{revision}:./{path.relative_to(paths.ROOT).as_posix()}"
    refuse_large(int(git("cat-file", "-s", name) or 0))
    return git("cat-file", "blob", name)


def refuse_large(size: int) -> None:
    """Raise `ValueError` for a file that would keep the page waiting."""
    if size > MAX_BYTES:
        raise ValueError(f"it has {size:,} bytes, and {MAX_BYTES:,} are read at most")


def git(*arguments: str) -> str | None:
    """The output of a git command in the project's folder; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
