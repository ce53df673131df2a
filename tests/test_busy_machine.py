"""Beside other programs OpenMP's threads sleep, and results do not change."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stages.lm.model import busy_machine

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or (os.cpu_count() or 1) < 2,
    reason="needs libgomp and a second processor",
)


def run(code: str, **env: str) -> list[float]:
    """What a new interpreter with two OpenMP threads prints, as numbers."""
    rest = {key: value for key, value in os.environ.items() if not key.startswith(("OMP", "GOMP"))}
    out = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=rest | {"OMP_NUM_THREADS": "2"} | env,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [float(number) for number in out.split()]


def test_parked_threads_stop_the_spinning_and_change_no_bit():
    spinning, result, parked, same, again, threads = run("""
import time, torch
from stages.lm.model import busy_machine as b
x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
def burnt():
    torch.exp(x); began = time.process_time()
    for _ in range(30):
        torch.exp(x[: 1 << 16]); time.sleep(0.01)
    return time.process_time() - began
before = burnt()
total = x.exp().sum().item()
parked = b.ParkedThreads(b._libgomp())
during = burnt()
print(before, total, during, int(x.exp().sum().item() == total))
parked.release()
print(burnt(), torch.get_num_threads())
""")
    assert parked < spinning / 2 and parked < again / 2
    assert same and threads == 2 and result > 0


def test_the_watcher_parks_threads_while_the_machine_is_busy_and_lets_them_go_after():
    idle, busy, idle_again = run("""
import itertools, time, torch
from stages.lm.model import busy_machine as b
torch.randn(1 << 20).exp()
b.PERIOD = 0.02
share = 0.0
waited = itertools.accumulate(iter(lambda: share * b.PERIOD, None))
b.seconds_waited = lambda: next(waited)
def threads():
    time.sleep(0.3)
    return len(list(b.TASKS.iterdir()))
b.sleep_when_busy()
print(threads())
share = 0.9
print(threads())
share = 0.0
print(threads())
""")
    processors = len(os.sched_getaffinity(0))
    assert busy >= idle + processors and idle_again == idle


def test_waiting_for_a_processor_is_counted():
    alone, beside = run("""
import os, time
from stages.lm.model.busy_machine import seconds_waited
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
def spin(seconds):
    began, waited = time.monotonic(), seconds_waited()
    while time.monotonic() - began < seconds: pass
    return seconds_waited() - waited
alone = spin(0.1)
child = os.fork()
if not child:
    spin(1.5); os._exit(0)
beside = spin(1.0)
os.waitpid(child, 0)
print(alone, beside)
""")
    assert beside > alone + 0.2


@pytest.mark.parametrize("variable", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT"])
def test_the_variables_of_the_user_are_respected(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(busy_machine, "_libgomp", lambda: pytest.fail("looked for the library"))
    busy_machine.sleep_when_busy.__wrapped__()


def test_without_the_library_nothing_is_started(monkeypatch):
    for variable in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(variable, raising=False)

    def missing():
        raise StopIteration

    monkeypatch.setattr(busy_machine, "_libgomp", missing)
    monkeypatch.setattr(busy_machine.threading, "Thread", lambda **_: pytest.fail("a watcher"))
    busy_machine.sleep_when_busy.__wrapped__()
