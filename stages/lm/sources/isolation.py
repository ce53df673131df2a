"""Reads intricate formats in a process of its own, which may crash, hang or eat memory alone.

A PDF, an Office file or a parquet file can be forged so that its reader never ends, takes all
memory or crashes. The process answers in JSON, so that nothing of it has to be trusted.
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from ..core.errors import UserError
from ..core.paths import ROOT
from .files import SourceFile

MAX_ANSWER = 1 << 26
"""Bytes of the longest answer that is read; `worker.py` keeps far below."""

DIED = "its reader took all the time or memory it may, or crashed, as it does on damaged files"


class UnusableError(UserError):
    """A file could not be taken apart."""

    def __init__(self, file: SourceFile, reason: str) -> None:
        super().__init__(f"{file.shown} cannot be used: {reason}; move it elsewhere.")
        self.reason = reason


_idle: list[subprocess.Popen[bytes]] = []
"""Processes that wait for a file. They end when this one does, with their input."""


def isolated(file: SourceFile, limit: int | None = None) -> Iterator[Any]:
    """The rows of a parquet file, as dicts, or the text of another file in parts; `limit` of them.

    Raises:
        UnusableError: it is damaged, or takes more than the worker's limits.
        UserError: the system could not read it.
    """
    worker = _idle.pop() if _idle else _start()
    assert worker.stdin and worker.stdout
    request = {"limit": limit, "file": dataclasses.asdict(file) | {"path": str(file.path)}}
    ended = False
    try:
        with suppress(BrokenPipeError):
            worker.stdin.write(json.dumps(request).encode() + b"\n")
            worker.stdin.flush()
        while line := worker.stdout.readline(MAX_ANSWER):
            try:
                kind, value = json.loads(line)
            except ValueError:
                break
            if kind == "part":
                yield value
                continue
            ended = True
            if kind == "end":
                return
            raise UserError(value) if kind == "refused" else UnusableError(file, value)
        raise UnusableError(file, DIED)
    finally:
        if ended:
            _idle.append(worker)
        else:  # nobody reads on, or it died
            _end(worker)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "stages.lm.sources.worker"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which ends it
    )


def _end(worker: subprocess.Popen[bytes]) -> None:
    worker.kill()
    with suppress(BrokenPipeError):
        worker.communicate()


def stop() -> None:
    """End the processes that wait."""
    while _idle:
        _end(_idle.pop())
