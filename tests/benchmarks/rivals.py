"""The pipeline among rivals: killed and doubled processes, DVC's cache types, clones, no network.

    PYTHONPATH=tests:. python tests/benchmarks/rivals.py [FAMILY ...]

prints for each family of cases how many were tried and how many held. A case holds if, in the end,
`dvc status` finds nothing to do, every object in DVC's cache still hashes to its name, and the
model, its metrics and its curve are the bytes of an undisturbed run. `offline` needs Linux.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from test_end_to_end import (
    IDENTITY,
    clone_that_pulls,
    digests,
    dvc,
    new_project,
    set_params,
    trainer_of,
    wait_for_queue,
    wait_for_state,
    wait_for_trainer,
)

LONG = {"train": {"epochs": 20}}
"""Settings that make training last some seconds, so that a second process can interfere."""
BUSY = ("another training process", "busy", "Unable to acquire lock")
"""Messages for a second process, by the trainer or by DVC."""
Case = tuple[str, Callable[[], None]]


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """What came of a command in a folder."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | IDENTITY | {"PATH": path}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


class Rivals:
    """Project copies to disturb, and the results of an undisturbed run of each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.count = 0
        self.base = new_project(folder / "base")
        set_params(self.base, LONG)
        dvc(self.base, "repro", "tokenize")
        run(self.base, "git", "add", "-A")
        run(self.base, "git", "commit", "-qm", "tokenized")
        self.expected: dict[int, dict[str, str]] = {}
        for seed in (1, 2):
            with self.project(seed) as project:
                dvc(project, "repro")
                self.expected[seed] = digests(project)

    @contextmanager
    def project(self, seed: int) -> Iterator[Path]:
        """A fresh copy of the tokenized project that is to train with this seed."""
        self.count += 1
        copy = self.folder / str(self.count)
        shutil.copytree(self.base, copy, symlinks=True)
        set_params(copy, {"train": {"seed": seed}})
        yield copy
        shutil.rmtree(copy)

    def settle(self, project: Path, seed: int) -> None:
        """Run the pipeline to its end and check everything that a case has to leave whole."""
        dvc(project, "repro")
        assert digests(project) == self.expected[seed], "not the bytes of an undisturbed run"
        check(project)


def check(project: Path) -> None:
    """Assert that nothing is left to do and each object of the cache has the digest in its name."""
    status = dvc(project, "status").stdout
    assert "up to date" in status, status
    objects = [path for path in (project / ".dvc/cache/files/md5").rglob("*") if path.is_file()]
    assert objects
    for path in objects:
        name = path.parent.name + path.name.removesuffix(".dir")
        assert hashlib.md5(path.read_bytes()).hexdigest() == name, f"{path} is corrupt"


class Background:
    """A DVC command on its own, whose output goes to a file: a killed parent leaves it open."""

    def __init__(self, project: Path, *arguments: str) -> None:
        self.log = project.with_name(f"{project.name}-{time.monotonic_ns()}.log")
        with self.log.open("wb") as log:
            command = [sys.executable, "-m", "dvc", *arguments]
            self.process = subprocess.Popen(command, cwd=project, stdout=log, stderr=log)

    def end(self) -> tuple[int, str]:
        """Its exit code and output, once it has ended."""
        return self.process.wait(), self.log.read_text("utf-8")


def refused(code: int, output: str) -> None:
    """Assert that a second process was refused with a message."""
    assert code != 0, output
    assert any(words in output for words in BUSY), output
    assert "Traceback" not in output, output


def orphans(rivals: Rivals) -> Iterator[Case]:
    """Only `dvc` is killed: its trainer keeps running while the next `dvc repro` starts."""

    def case(seconds: float, then: str, seed: int) -> None:
        with rivals.project(1) as project:
            first = Background(project, "repro")
            wait_for_state(project, first.process, seconds)
            first.process.kill()
            first.end()
            orphan = trainer_of(project)
            set_params(project, {"train": {"seed": seed}})
            done = dvc(project, "repro", check=False)
            refused(done.returncode, done.stdout + done.stderr)
            assert f"pid {orphan}" in done.stdout + done.stderr
            if then != "is waited for":
                os.kill(orphan, signal.SIGTERM if then == "is stopped" else signal.SIGKILL)
            wait_for_trainer(project)
            rivals.settle(project, seed)

    for seconds in (0.0, 0.7):
        for then in ("is waited for", "is stopped", "is killed"):
            for seed, word in ((1, "same"), (2, "other")):
                name = f"killed after {seconds} s, {word} settings, orphan {then}"
                yield name, lambda s=seconds, t=then, n=seed: case(s, t, n)


def doubles(rivals: Rivals) -> Iterator[Case]:
    """Several `dvc repro` at once: each succeeds or ends with a message, and one succeeds."""

    def case(delays: tuple[float, ...]) -> None:
        with rivals.project(1) as project:
            started = []
            for delay in delays:
                time.sleep(delay)
                started.append(Background(project, "repro"))
            ends = [each.end() for each in started]
            for code, output in ends:
                if code:
                    refused(code, output)
            assert any(code == 0 for code, _ in ends), ends
            rivals.settle(project, 1)

    for delays in ((0, 0), (0, 0.3), (0, 1), (0, 2), (0, 4), (0, 0, 0), (0, 1, 1)):
        yield f"started after {delays} s", lambda d=delays: case(d)


def queues(rivals: Rivals) -> Iterator[Case]:
    """Queued experiments beside a run in the workspace, and beside each other."""

    def case(seeds: list[int], workspace: int, jobs: int) -> None:
        with rivals.project(workspace) as project:
            run(project, "git", "commit", "-qam", "seed")
            # Samples differ, so that two experiments with one seed train the same model.
            for number, seed in enumerate(seeds):
                changes = ("-S", f"train.seed={seed}", "-S", f"evaluate.sample_tokens={9 + number}")
                dvc(project, "exp", "run", "--queue", "-n", f"e{number}", *changes)
            beside = Background(project, "repro")
            dvc(project, "queue", "start", "-j", str(jobs))
            assert beside.end()[0] == 0, beside.end()[1]
            wait_for_queue(project, len(seeds))
            names = dvc(project, "exp", "list", "--name-only").stdout.split()
            assert names, dvc(project, "queue", "status").stdout
            for number, seed in enumerate(seeds):
                if f"e{number}" in names:
                    assert trained_md5(project, f"e{number}") == rivals_md5[seed]
                else:
                    logs = dvc(project, "queue", "logs", f"e{number}")
                    refused(1, logs.stdout + logs.stderr)
            rivals.settle(project, workspace)

    rivals_md5 = {}
    for seed in (1, 2):
        with rivals.project(seed) as project:
            dvc(project, "repro")
            rivals_md5[seed] = lock_md5((project / "dvc.lock").read_text("utf-8"))
    yield "one with the settings of the workspace", lambda: case([1], 1, 1)
    yield "one with other settings", lambda: case([2], 1, 1)
    yield "two, one after the other", lambda: case([1, 2], 1, 1)
    yield "two at once", lambda: case([1, 2], 1, 2)
    yield "two at once that train the same model", lambda: case([2, 2], 1, 2)


def trained_md5(project: Path, name: str) -> str:
    """The digest of an experiment's checkpoint."""
    refs = run(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").stdout.split()
    (ref,) = (ref for ref in refs if ref.endswith(f"/{name}"))
    return lock_md5(run(project, "git", "show", f"{ref}:dvc.lock").stdout)


def lock_md5(lock: str) -> str:
    """The checkpoint's digest in a `dvc.lock`."""
    (out, *_) = (
        out for out in yaml.safe_load(lock)["stages"]["train"]["outs"] if out["path"].endswith("pt")
    )
    return out["md5"]


def caches(rivals: Rivals) -> Iterator[Case]:
    """Each way in which DVC links the workspace to its cache."""

    def full(project: Path) -> None:
        pass

    def changed(project: Path) -> None:
        set_params(project, {"train": {"seed": 2}})
        rivals.settle(project, 2)
        set_params(project, {"train": {"seed": 1}})

    def stopped(project: Path) -> None:
        set_params(project, {"train": {"seed": 2}})
        shutil.rmtree(project / "models/resume")
        first = Background(project, "repro")
        wait_for_state(project, first.process, 0.3)
        os.kill(trainer_of(project), signal.SIGTERM)
        assert first.end()[0] != 0
        rivals.settle(project, 2)
        set_params(project, {"train": {"seed": 1}})

    def by_hand(project: Path) -> None:
        for stage in ("corpus", "tokenize_text", "train", "quantize", "evaluate"):
            run(project, sys.executable, "-m", f"stages.{stage}")

    def case(kind: str, change: Callable[[Path], None]) -> None:
        with rivals.project(1) as project:
            dvc(project, "config", "cache.type", kind)
            # What was tokenized came as copies; from here on everything is linked as asked.
            dvc(project, "checkout", "--relink", "models/tokens")
            rivals.settle(project, 1)
            assert (project / "models/checkpoint.pt").is_symlink() == (kind == "symlink")
            change(project)
            rivals.settle(project, 1)

    for kind in ("copy", "hardlink", "symlink"):
        for change in (full, changed, stopped, by_hand):
            yield f"{kind}, {change.__name__}", lambda k=kind, c=change: case(k, c)


def clones(rivals: Rivals) -> Iterator[Case]:
    """Runs from nothing give one `dvc.lock`; what was pulled is not made again."""
    made: list[Path] = []

    def from_scratch(number: int) -> None:
        made.append(new_project(rivals.folder / f"from scratch {number}"))
        dvc(made[-1], "repro")
        check(made[-1])
        first, last = ((each / "dvc.lock").read_bytes() for each in (made[0], made[-1]))
        assert first == last, "dvc.lock differs"

    def clone(name: str, *commands: list[str]) -> None:
        original, copy = made[0], rivals.folder / name
        run(original, "git", "add", "-A")
        run(original, "git", "commit", "-qm", "made", "--allow-empty")
        clone_that_pulls(original, copy)
        for command in commands:
            output = dvc(copy, *command).stdout
            assert "Running stage" not in output, output
        check(copy)
        assert digests(copy) == digests(original)
        assert run(copy, "git", "status", "--porcelain").stdout == ""

    for number in range(5):
        yield f"run {number + 1} from scratch", lambda n=number: from_scratch(n)
    yield "clone, dvc pull, dvc repro", lambda: clone("pulled", ["pull"], ["repro"])
    yield "clone, dvc repro --pull", lambda: clone("repro", ["repro", "--pull"])


def offline(rivals: Rivals) -> Iterator[Case]:
    """Everything without a network; the loopback is up, for the page."""
    page = Path(__file__).with_name("sessions.py")
    few = "--sessions 3 --length 20 --generations 10 --stops 2"
    commands = {
        "dvc repro": f"{sys.executable} -m dvc repro",
        "dvc exp run": f"{sys.executable} -m dvc exp run -S train.epochs=1",
        "dvc metrics, params, plots": " && ".join(
            f"{sys.executable} -m dvc {each}"
            for each in ("metrics show", "metrics diff", "params diff", "plots show")
        ),
        "the terminal": f"{sys.executable} -m app.generate the --length 9",
        "the page": f"cd {Path.cwd()} && {sys.executable} {page} {few}",
    }
    project = new_project(rivals.folder / "offline")

    def case(command: str) -> None:
        alone = "ip link set lo up; ! ip route get 192.0.2.1 2>/dev/null &&"
        run(project, "unshare", "-rn", "sh", "-c", f"{alone} {command}")

    for name, command in commands.items():
        yield name, lambda c=command: case(c)


FAMILIES = (orphans, doubles, queues, caches, clones, offline)


def main() -> int:
    """Try every case of the families asked for; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [family.__name__ for family in FAMILIES]
    parser.add_argument("families", nargs="*", default=names, help=f"of {', '.join(names)}")
    asked = parser.parse_args().families
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        rivals = Rivals(Path(folder))
        for family in FAMILIES:
            if family.__name__ not in asked:
                continue
            outcomes = []
            for name, case in family(rivals):
                began = time.monotonic()
                try:
                    case()
                    outcomes.append(True)
                except Exception:
                    outcomes.append(False)
                    traceback.print_exc()
                word = "held" if outcomes[-1] else "NOT HELD"
                print(f"    {name}: {word}, {time.monotonic() - began:.0f} s", flush=True)
            print(f"{family.__name__}: {len(outcomes)} tried, {sum(outcomes)} held", flush=True)
            failed += len(outcomes) - sum(outcomes)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
