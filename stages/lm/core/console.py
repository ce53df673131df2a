"""Ctrl-C before a command has begun its work, and standard outputs that nobody reads."""

import io
import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any, NoReturn

STOPPED = "stopped; run the same command again to start over"


def begin_command() -> None:
    """Make this process, which still has to import what it needs, end in one line on Ctrl-C.

    Standard files that are closed are replaced by the null device, lest a file of ours gets the
    number of one and with it what others print.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    # An exception would end in a traceback from the middle of an import, or be passed over there.
    with suppress(OSError):
        os.write(2, f"{STOPPED}\n".encode())
    os._exit(128 + number)


class _Unread(io.FileIO):
    """An output whose errors (a closed pipe, a full disk) are passed over."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def need_no_reader(name: str) -> None:
    """Pass over what cannot be written to the process's own `stdout` or `stderr`."""
    old = getattr(sys, name)
    if old is not getattr(sys, f"__{name}__"):  # a test's or a notebook's
        return
    if old is None:  # it was closed from the start
        old = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    raw = _Unread(os.dup(old.fileno()), "w")
    new = io.TextIOWrapper(
        raw if old.write_through else io.BufferedWriter(raw),
        old.encoding,
        old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )
    setattr(sys, name, new)
