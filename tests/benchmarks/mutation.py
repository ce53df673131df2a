"""How many hand-made faults the tests notice.

    python tests/benchmarks/mutation.py [--only TEXT] [--suite quick|slow]

Each fault of `mutation.diff` is one change to the library, put into a copy of the project. The test
files named with it run there, and if they pass, all quick tests; with `--suite slow` the slow ones
too. A line tells each fault, and the last lines how many were caught in each package.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
FAULTS = Path(__file__).with_suffix(".diff")
LIMIT_S = 180
"""Of the named test files; all tests have ten times as long. Running longer is being caught."""


class Fault(NamedTuple):
    """A change to one file, and the test files most likely to notice it."""

    file: str
    old: str
    new: str
    tests: list[str]

    @property
    def package(self) -> str:
        """The library's package, or `stages`."""
        return Path(self.file).parent.name


def read_faults(text: str) -> list[Fault]:
    """The faults in a text of blocks divided by empty lines.

    A block is a line `FILE: TESTS`, where TESTS are names such as `data` for `tests/test_data.py`,
    and then the old lines after `-` and the new lines after `+`, which need not be whole lines.
    """
    faults = []
    for block in text.strip().split("\n\n"):
        head, *lines = block.split("\n")
        file, tests = head.split(": ")
        old, new = ("\n".join(line[1:] for line in lines if line[0] == sign) for sign in "-+")
        assert old and old != new, f"{file}: {old!r} is no fault"
        faults.append(Fault(file, old, new, [f"tests/test_{name}.py" for name in tests.split()]))
    return faults


def apply_fault(fault: Fault, text: str) -> str:
    """The text of the fault's file with the fault, whose old text must occur exactly once."""
    count = text.count(fault.old)
    if count != 1:
        raise SystemExit(f"{FAULTS.name}: {fault.file} holds {fault.old!r} {count} times")
    return text.replace(fault.old, fault.new)


def copy_project(folder: Path) -> None:
    """Copy the repository, with the files under version control as they are now."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)  # a new file's
            shutil.copy(ROOT / name, folder / name)


def fails(folder: Path, tests: list[str], marker: str, limit_s: float) -> bool:
    """Whether a test of a copy fails, or takes too long."""
    workers = "2" if tests == ["tests"] else "0"
    options = ["-x", "-q", "-n", workers, "-p", "no:cacheprovider", "-o", "addopts=", "-m", marker]
    try:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=limit_s,
        ).returncode
    except subprocess.TimeoutExpired:
        return True
    if code not in (0, 1, 2):  # 2: a module cannot be imported
        raise SystemExit(f"pytest ended with {code} for {' '.join(tests)}")
    return code != 0


@functools.cache
def check_unchanged(marker: str) -> None:
    """Make sure that all tests of `marker` pass in a copy without a fault."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        copy_project(Path(folder))
        if fails(Path(folder), ["tests"], marker, 10 * LIMIT_S):
            raise SystemExit(f"the tests ({marker}) fail without a fault; mend that first")


def caught_by(fault: Fault, suite: str) -> str:
    """`named`, `quick` or `slow`: the first tests that fail with the fault; else nothing."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as name:
        folder = Path(name)
        copy_project(folder)
        path = folder / fault.file
        path.write_text(apply_fault(fault, path.read_text("utf-8")), "utf-8")
        if fails(folder, fault.tests, "not slow", LIMIT_S):
            return "named"
        for kind, marker in {"quick": "not slow", "slow": "slow"}.items():
            check_unchanged(marker)
            if fails(folder, ["tests"], marker, 10 * LIMIT_S):
                return kind
            if kind == suite:
                break
    return ""


def main() -> None:
    """Try every fault."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default="", help="a part of the file's name or of the old text")
    parser.add_argument("--suite", choices=["quick", "slow"], default="quick")
    arguments = parser.parse_args()
    faults = read_faults(FAULTS.read_text("utf-8"))
    for fault in faults:  # all of them before the first run, which takes minutes
        apply_fault(fault, (ROOT / fault.file).read_text("utf-8"))
    faults = [fault for fault in faults if arguments.only in f"{fault.file} {fault.old}"]
    total, caught = Counter[str](), Counter[str]()
    for fault in faults:
        began = time.monotonic()
        kind = caught_by(fault, arguments.suite)
        total[fault.package] += 1
        caught[fault.package] += bool(kind)
        change = " ".join(f"{fault.old} -> {fault.new}".split())
        seconds = time.monotonic() - began
        print(f"{kind or 'MISSED':<6} {seconds:4.0f} s  {fault.file}: {change[:110]}", flush=True)
    for package, count in total.items():
        print(f"{package:<14}{caught[package]:>3} of {count:>3}")
    print(f"{'all':<14}{caught.total():>3} of {total.total():>3}")


if __name__ == "__main__":
    main()
