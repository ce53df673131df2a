"""What is edited while a stage runs is never recorded as what its outputs were made from.

    python tests/benchmarks/edits.py [--moments 6] [--seed 1] [--only train]

A small project is built with DVC. Then each stage runs again, by `dvc repro --force --single-item`;
at a random moment its process is stopped (SIGSTOP), something changes, and it continues. A case
holds if afterwards either the stage failed and its record in dvc.lock is the old one, or it
succeeded and the recorded version of what changed is the one that the outputs were made from:
they have the bytes that a run without interruption makes of it, or, for code, the process has run
the edited line. For each stage and change: cases tried, cases held, and how many were refused.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import warm  # noqa: E402
import yaml  # noqa: E402
from test_end_to_end import dvc, git, new_project, set_params  # noqa: E402

SETTINGS = {  # a change of each stage's outputs
    "corpus": {"tokenize": {"val_fraction": 0.07}, "recipe": "best"},
    "tokenize": {"tokenize": {"vocab_size": 310}},
    "train": {"train": {"seed": 7}},
    "quantize": {"quantize": {"scheme": "int8"}},
    "evaluate": {"evaluate": {"seed": 7}},
}
INPUTS = {
    "corpus": "data/input.txt",
    "tokenize": "data/input.txt",
    "train": "models/tokens/train.npy",
    "quantize": "models/checkpoint.pt",
    "evaluate": "models/tokens/val.npy",
}
MARK = "loaded"
"""A file that an edited module writes when it is imported."""


class Project:
    """A built project, of which each case gets a fresh copy."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.built = new_project(work / "built")
        dvc(self.built, "repro")
        git(self.built, "add", "-A")
        git(self.built, "commit", "-qm", "built")
        pipeline = yaml.safe_load((self.built / "dvc.yaml").read_text("utf-8"))
        self.stages: dict[str, dict[str, Any]] = pipeline["stages"]
        self.expected: dict[tuple[str, str], dict[str, str]] = {}
        self.imported = {stage: self._imported(stage) for stage in self.stages}

    def _imported(self, stage: str) -> list[str]:
        """The modules that a stage imports: those of which a run leaves compiled files."""
        folder = self.copy()
        for path in folder.rglob("__pycache__"):
            shutil.rmtree(path)
        assert run(folder, stage, None, lambda: None)[0] == 0
        files = [file for file in folder.rglob("*.pyc") if not file.name.startswith("__init__")]
        names = [file.parents[1] / f"{file.name.split('.')[0]}.py" for file in files]
        return sorted(str(name.relative_to(folder)) for name in names)

    def copy(self) -> Path:
        """A new copy."""
        folder = self.work / "case"
        shutil.rmtree(folder, ignore_errors=True)
        return shutil.copytree(self.built, folder, symlinks=True)

    def outputs(self, folder: Path, stage: str) -> dict[str, str]:
        """Digests of a stage's output files."""
        found = {}
        asked = self.stages[stage]
        for out in (*asked.get("outs", []), *asked.get("metrics", []), *asked.get("plots", [])):
            path = folder / (out if isinstance(out, str) else next(iter(out)))
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.name != ".gitignore":
                    name = str(file.relative_to(folder))
                    found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    def record(self, folder: Path, stage: str) -> dict[str, Any]:
        """What dvc.lock says of a stage."""
        lock = yaml.safe_load((folder / "dvc.lock").read_text("utf-8"))
        return lock["stages"].get(stage, {})


def run(
    folder: Path, stage: str, moment: float | None, edit: Callable[[], None]
) -> tuple[int, float]:
    """Run a stage; `moment` seconds after its process began, stop it, edit, continue.

    Returns the exit code of DVC, and the seconds that the stage took; -1 for a stage that ended
    before the moment.
    """
    with (folder / ".git" / "output").open("wb") as output:
        process = warm.start(
            folder, "-m", "dvc", "repro", "-f", "-s", stage, output=output, OMP_NUM_THREADS="1"
        )
        pid = None
        while pid is None and process.poll() is None:
            pid = stage_process(folder, process.pid)
            time.sleep(0.002)
        assert pid, (folder / ".git" / "output").read_text("utf-8")
        began = time.monotonic()
        if moment is not None:
            time.sleep(moment)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            while state(pid) not in ("T", "Z", ""):
                time.sleep(0.001)
            if state(pid) != "T":
                return process.wait(), -1
            edit()
            with suppress(ProcessLookupError):  # it had just ended when it was stopped
                os.kill(pid, signal.SIGCONT)
        while state(pid) not in ("", "Z"):
            time.sleep(0.01)
        took = time.monotonic() - began
        return process.wait(), took


def state(pid: int) -> str:
    """`T` of a stopped process, `Z` of one that has ended, and so on."""
    return (status(pid) or [""])[0]


def status(pid: int) -> list[str]:
    """State, parent and more of a process; empty if there is none."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return []


def stage_process(folder: Path, dvc_pid: int) -> int | None:
    """The process in a folder that the server has forked and that is not DVC."""
    server = status(dvc_pid)[1:2]
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):
            forked = pid != dvc_pid and status(pid)[1:2] == server
            if forked and (entry / "cwd").readlink() == folder:
                return pid
    return None


def changes(project: Project, stage: str, folder: Path, draw: random.Random) -> dict[str, Any]:
    """Each change as a function, and for some what prepares it."""
    source = folder / INPUTS[stage]
    settings = SETTINGS[stage]
    module = folder / draw.choice(project.imported[stage])

    def edit_code() -> None:
        text = module.read_text("utf-8")
        module.write_text(f"open({str(folder / MARK)!r}, 'w').close()\n{text}", "utf-8")

    def rewrite() -> None:
        data = source.read_bytes()
        source.unlink()
        source.write_bytes(data[: len(data) // 2] + data[len(data) // 4 :])

    def branch() -> None:
        git(folder, "checkout", "-qb", "other")
        set_params(folder, settings)
        edit_code()
        git(folder, "commit", "-qam", "other")
        git(folder, "checkout", "-q", "-")

    def stash_and_pop() -> None:
        git(folder, "stash", "-q")
        git(folder, "stash", "pop", "-q")

    return {
        "settings": (None, lambda: set_params(folder, settings)),
        "code": (None, edit_code),
        "input rewritten": (None, rewrite),
        "input cut": (None, lambda: os.truncate(unlinked(source), 1000)),
        "input touched": (None, lambda: os.utime(unlinked(source))),
        "git stash": (lambda: set_params(folder, settings), lambda: git(folder, "stash", "-q")),
        "git stash and pop": (lambda: set_params(folder, settings), stash_and_pop),
        "git checkout": (branch, lambda: git(folder, "checkout", "-q", "other")),
        "dvc checkout": (None, lambda: dvc(folder, "checkout", check=False)),
        "dvc gc -w": (None, lambda: dvc(folder, "gc", "-w", "-f", check=False)),
    }


def unlinked(path: Path) -> Path:
    """The path, as a file that is no link to DVC's cache and can be written."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def wrong(project: Project, stage: str, folder: Path, code: int, old: dict[str, Any]) -> str:
    """What was wrong after a stage; empty if nothing."""
    record = project.record(folder, stage)
    if code:
        return "" if record == old else "it failed, but dvc.lock has a new record"
    now = project.outputs(folder, stage)
    marked = (folder / MARK).exists()
    changed_code = [
        dep["path"]
        for dep, before in zip(record["deps"], old["deps"], strict=True)
        if dep["path"].startswith("stages/") and dep != before
    ]
    if changed_code and not marked:
        return f"recorded code that did not run: {changed_code}"
    # The recorded settings and input, in a clean run of their own.
    clean = project.work / "clean"
    shutil.rmtree(clean, ignore_errors=True)
    shutil.copytree(folder, clean, symlinks=True)
    text = (folder / "data" / "input.txt").read_bytes()
    key = repr((record.get("params"), record["deps"], text))
    if (stage, key) not in project.expected:
        shutil.rmtree(clean / "models" / "resume", ignore_errors=True)
        again, _ = run(clean, stage, None, lambda: None)
        if again:
            return "it succeeded, and a clean run of what is recorded fails"
        project.expected[stage, key] = project.outputs(clean, stage)
        for name in ("deps", "params"):
            if project.record(clean, stage).get(name) != record.get(name):
                return f"dvc.lock records other {name} than there are"
    expected = project.expected[stage, key]
    different = [name for name in expected if expected[name] != now.get(name)]
    return f"outputs are not those of what is recorded: {different}" if different else ""


def main() -> None:
    """Try every stage, change and moment."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--moments", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="a part of `STAGE, CHANGE`")
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    tried, held, refused = Counter[str](), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="edits-") as name, warm.server():
        project = Project(Path(name).resolve())
        for stage in project.stages:
            folder = project.copy()
            code, duration = run(folder, stage, None, lambda: None)
            assert code == 0, (folder / ".git" / "output").read_text("utf-8")
            for change in changes(project, stage, folder, draw):
                line = f"{stage}, {change}"
                if asked.only not in line:
                    continue
                while tried[line] < asked.moments:
                    folder = project.copy()
                    prepare, edit = changes(project, stage, folder, draw)[change]
                    if prepare:
                        prepare()
                    old = project.record(folder, stage)
                    moment = draw.uniform(0, duration)
                    code, took = run(folder, stage, moment, edit)
                    if took < 0:
                        continue  # it had ended
                    problem = wrong(project, stage, folder, code, old)
                    tried[line] += 1
                    held[line] += not problem
                    refused[line] += code != 0
                    said = (folder / ".git" / "output").read_text("utf-8")
                    if "Traceback" in said:
                        problem += " (a traceback)"
                    if problem:
                        print(f"  {line} after {moment:.2f} of {duration:.2f} s: {problem}")
                        print("    " + said[-600:].replace("\n", "\n    "), flush=True)
                print(f"{line:<32}{tried[line]:>4}{held[line]:>4}{refused[line]:>4}", flush=True)
    print(f"{'all':<32}{tried.total():>4}{held.total():>4}{refused.total():>4}")


if __name__ == "__main__":
    main()
