"""Reads the settings, metrics and models of DVC's experiments.

Reads through git and DVC's cache and takes no lock, so that a run may go on meanwhile.
"""

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.inference.loading import LoadedModel, load_model

REFS = "refs/exps/"
INTERNAL_REFS = (REFS + "exec/", REFS + "celery/", REFS + "apply/")
"""References under `REFS` that are not experiments."""


@dataclass(frozen=True)
class Experiment:
    """One result of `dvc exp run`."""

    name: str
    revision: str
    changed: dict[str, tuple[Any, Any]]
    """Settings that differ from the workspace: key -> (workspace's value, experiment's value)."""


def experiments() -> list[Experiment]:
    """Every experiment in this repository, the newest first; none where there is no git."""
    lines = git("for-each-ref", "--sort=-creatordate", "--format=%(objectname) %(refname)", REFS)
    ours = settings(paths.PARAMS.read_text("utf-8"))
    found = []
    for line in (lines or "").splitlines():
        revision, _, name = line.partition(" ")
        if name.startswith(INTERNAL_REFS):
            continue
        theirs = settings(at_revision(revision, paths.PARAMS) or "")
        changed = {
            key: (ours.get(key), theirs.get(key))
            for key in [*theirs, *(ours.keys() - theirs.keys())]
            if theirs.get(key) != ours.get(key)
        }
        found.append(Experiment(name.rpartition("/")[2], revision, changed))
    return found


def settings(text: str) -> dict[str, Any]:
    """The values of a `params.yaml` by dotted key; empty where the text is not such a file."""
    try:
        sections = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    values: dict[str, Any] = {}
    for section, keys in (sections if isinstance(sections, dict) else {}).items():
        if isinstance(keys, dict):
            values |= {f"{section}.{key}": value for key, value in keys.items()}
        else:
            values[str(section)] = keys
    return values


def metrics(revision: str | None, path: Path) -> dict[str, Any]:
    """A metrics file at an experiment's revision, or of the workspace (None); empty if missing."""
    try:
        text = path.read_text("utf-8") if revision is None else at_revision(revision, path)
        found = json.loads(text or "{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def at_revision(revision: str, path: Path) -> str | None:
    """The text of a tracked file at a revision; None where it has no such file."""
    return git("show", f"{revision}:./{path.relative_to(paths.ROOT).as_posix()}")


def git(*arguments: str) -> str | None:
    """The output of a git command in the project's folder; None where it fails."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=paths.ROOT, capture_output=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace")
