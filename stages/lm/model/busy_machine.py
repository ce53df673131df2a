"""Keep OpenMP's waiting threads from spinning while other programs need the processors.

After each parallel region the threads of libgomp, the OpenMP of torch's Linux builds, spin in a
loop until the next one. On an idle machine this saves waking them, up to a fifth of a training
step. On a busy machine a spinning thread occupies the processor that the thread it waits for needs:
two trainers on the same processors fall to a tenth of their speed.

libgomp spins for 100 rounds instead of 300,000 while it manages more threads than there are
processors (its manual, GOMP_SPINCOUNT). So a watcher reads from the kernel how long this process's
threads waited for a processor. While that is much, it keeps additional OpenMP threads, which sleep.
The number of threads that compute does not change, and so no bit of a result does.
"""

import ctypes
import os
import threading
import time
from functools import cache
from pathlib import Path

TASKS = Path("/proc/self/task")
PERIOD = 0.25
"""Seconds between two readings."""
BUSY = 0.1
"""The machine counts as busy above this many seconds waited for a processor per second.
Measured on two cores: under 0.06 alone, over 0.5 beside one busy process."""
IDLE = 0.03
"""Below this it counts as idle again."""


@cache
def sleep_when_busy() -> None:
    """Start the watcher, once a process; does nothing without libgomp or the kernel's figures.

    Does nothing either if the user's environment already sets how OpenMP waits.
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
    """Seconds that this process's threads have waited for a processor, summed over threads."""
    nanoseconds = 0
    for task in TASKS.iterdir():
        try:
            # Documentation/scheduler/sched-stats.rst: time running, time waiting, time slices.
            nanoseconds += int((task / "schedstat").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):  # the thread has ended
            continue
    return nanoseconds / 1e9


class ParkedThreads:
    """Sleeping OpenMP threads, one more than there are processors."""

    def __init__(self, openmp: ctypes.CDLL) -> None:
        self._openmp = openmp
        self._released = threading.Event()
        self._owner = threading.Thread(target=self._park, name="parked threads", daemon=True)
        self._owner.start()

    def _park(self) -> None:
        # A parallel region whose function only returns. libgomp keeps the region's threads asleep
        # until the thread that started it ends.
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
