"""Runs many cases in forked workers with little memory, a watchdog and an eye on what they do.

Used by `damage.py` and `fuzz.py`; Linux only.
"""

import encodings.cp437  # noqa: F401  (zipfile imports it for names that are not UTF-8)
import mmap
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect")
ACTS += ("socket.bind", "socket.__new__", "exec", "import", "os.remove")

_armed = False
_seen: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    """An audit hook that notes, within `watched`, what a reader of files has no business doing."""
    if not _armed:
        return
    writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
    if writes or event in ACTS:
        _seen.append(f"{event} {arguments!r:.120}")


def watched(function: Callable[[], str]) -> str:
    """What `function` returns or raises, but a failure where the process acted meanwhile."""
    global _armed
    _seen.clear()
    _armed = True
    try:
        return function()
    finally:
        _armed = False
        if _seen:
            raise AssertionError(f"it did {_seen}")


def run_isolated(
    cases: int, case: Callable[[int], str], seconds: float = 10, memory: int = 2 << 30
) -> Counter:
    """How often `case(0)`, ... `case(cases - 1)` gave each result; "FAILED..." is a failure.

    So are an exception, a crash, and taking more `seconds` of processor time or more `memory`
    (bytes of address space, beyond what the worker has before it). Prints every failure.
    """
    sys.stdout.flush()
    place = mmap.mmap(-1, 8)
    results: Counter = Counter()
    first = 0
    while first < cases:
        place[:] = first.to_bytes(8, "little")
        reader, writer = os.pipe()
        worker = os.fork()
        if not worker:
            os.close(reader)
            _work(first, cases, case, place, writer, memory)
        os.close(writer)
        os.set_blocking(reader, False)
        status, lines, now, since = 0, b"", first, 0.0
        while True:
            done, status = os.waitpid(worker, os.WNOHANG)
            lines += _read(reader)
            if done:
                break
            used = cpu_seconds(worker)
            if now != int.from_bytes(place[:], "little"):
                now, since = int.from_bytes(place[:], "little"), used
            if used - since > seconds:
                os.kill(worker, signal.SIGKILL)
            time.sleep(0.005)
        os.close(reader)
        results.update(lines.decode().splitlines())
        first = int.from_bytes(place[:], "little")
        if status:
            hung = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            results[f"FAILED: case {first} {'hung' if hung else f'crashed ({status})'}"] += 1
            first += 1
    for result in results:
        if result.startswith("FAILED"):
            print(" ", result)
    return results


def held(results: Counter) -> str:
    """Tried, held and how, in a line."""
    good = {name: count for name, count in results.items() if not name.startswith("FAILED")}
    how = ", ".join(f"{name} {count:,}" for name, count in sorted(good.items()))
    return f"{results.total():>9,} tried {sum(good.values()):>9,} held   ({how})"


def cpu_seconds(process: int | str) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def _read(descriptor: int) -> bytes:
    parts = []
    try:
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except BlockingIOError:
        pass
    return b"".join(parts)


def _work(
    first: int,
    cases: int,
    case: Callable[[int], str],
    place: mmap.mmap,
    pipe: int,
    memory: int,
) -> None:
    try:
        sys.addaudithook(watch)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + memory,) * 2)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, cases):
            place[:] = number.to_bytes(8, "little")
            try:
                result = case(number)
            except BaseException as error:
                where = traceback.extract_tb(error.__traceback__)[-1]
                result = f"FAILED: {type(error).__name__} {error!s:.100} at {where.name}"
            if result.startswith("FAILED"):
                result += f" (case {number})"
            os.write(pipe, result.replace("\n", " ").encode() + b"\n")
        place[:] = cases.to_bytes(8, "little")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(f"  worker from case {first}: at most {grown:,} MB more than before", flush=True)
        os._exit(0)
    finally:
        os._exit(1)
