"""Training and decoding beside other programs: OpenMP's threads sleep instead of spinning.

After each parallel region the threads of libgomp, the OpenMP of torch's Linux builds, wait for the
next one in a loop that does nothing. On an idle machine that saves the time of waking them, up to
a fifth of a training step. On a busy one a thread that spins keeps the processor from the thread
it waits for, and two trainers reach a tenth of their speed.

libgomp shortens the loop from 300,000 rounds to 100 while it manages more threads than there are
processors (its manual, GOMP_SPINCOUNT). So a watcher asks the kernel how long this process's
threads waited for a processor, and while that is much, it keeps a few more OpenMP threads, asleep.
The number of threads that compute, and so every bit of a result, stays the same.
"""

import ctypes
import os
import threading
import time
from functools import cache
from pathlib import Path

TASKS = Path("/proc/self/task")
PERIOD = 0.25
"""Seconds between two looks."""
BUSY = 0.1
"""Share of the time that threads waited for a processor from which the machine counts as busy.
Alone it was under 0.06, beside one busy process over 0.5 (two cores)."""
IDLE = 0.03
"""Share under which it counts as idle again."""


@cache
def sleep_when_busy() -> None:
    """Start the watcher, once a process; does nothing without libgomp or the kernel's figures.

    Variables of the user that set how OpenMP waits are respected.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        return
    try:
        openmp = _libgomp()
        seconds_waited()
    except (OSError, StopIteration, AttributeError, ValueError, IndexError):
        return
    threading.Thread(target=_watch, args=(openmp,), name="busy machine", daemon=True).start()


def seconds_waited() -> float:
    """How long the threads of this process have been ready to run without a processor, in all."""
    nanoseconds = 0
    for task in TASKS.iterdir():
        try:
            # Documentation/scheduler/sched-stats.rst: time running, time waiting, time slices.
            nanoseconds += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return nanoseconds / 1e9


class ParkedThreads:
    """OpenMP threads that have nothing to do: with them there are more than processors."""

    def __init__(self, openmp: ctypes.CDLL) -> None:
        self._openmp = openmp
        self._released = threading.Event()
        self._owner = threading.Thread(target=self._park, name="parked threads", daemon=True)
        self._owner.start()

    def _park(self) -> None:
        # A parallel region of a function that only returns. Its threads belong to this one: they
        # sleep as long as it lives, and end with it.
        nothing = ctypes.cast(self._openmp.omp_get_thread_num, ctypes.c_void_p)
        count = self._openmp.omp_get_num_procs() + 1
        self._openmp.GOMP_parallel(nothing, None, ctypes.c_uint(count), ctypes.c_uint(0))
        self._released.wait()

    def release(self) -> None:
        """End the threads."""
        self._released.set()
        self._owner.join()


def _libgomp() -> ctypes.CDLL:
    """The library that torch has loaded; StopIteration if there is none."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    openmp = ctypes.CDLL(next(line.split(maxsplit=5)[5] for line in lines if "/libgomp" in line))
    assert openmp.GOMP_parallel and openmp.omp_get_thread_num and openmp.omp_get_num_procs
    return openmp


def _watch(openmp: ctypes.CDLL) -> None:
    parked: ParkedThreads | None = None
    before, began = seconds_waited(), time.monotonic()
    while True:
        time.sleep(PERIOD)
        waited, now = seconds_waited(), time.monotonic()
        share = (waited - before) / (now - began)
        before, began = waited, now
        if parked is None and share > BUSY:
            parked = ParkedThreads(openmp)
        elif parked is not None and share < IDLE:
            parked.release()
            parked = None
