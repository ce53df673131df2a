"""Running a command: exit codes, messages, and a check that nothing it depends on has changed."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .console import STOPPED, need_no_reader, show_controls
from .errors import UserError
from .inputs import StageInputs


def run_stage(
    main: Callable[[], int | None],
    unread: tuple[str, ...] = ("stdout", "stderr"),
    first: Callable[[], None] | None = None,
) -> NoReturn:
    """Run a stage's `main` and leave the process with its exit code.

    `first` runs before and may still change what the stage depends on.

    A `UserError` becomes one line on standard error and exit code 1, and so does a change of
    anything that `dvc.yaml` lists for the stage. Any other exception is a defect of ours and keeps
    its traceback. The outputs named in `unread` need no reader. A terminal shows control characters
    of what is printed, instead of obeying them.
    """
    for name in unread:
        need_no_reader(name)
    show_controls(sys.stdout)
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if first:
            first()
        inputs = StageInputs(f"python -m {module_name(main)}")
        try:
            code = main() or 0
        except Exception:
            inputs.check()  # a file that changed while it was read can cause any error
            raise
        if code == 0:  # otherwise DVC records nothing anyway
            inputs.check()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest takes a moment and cannot be undone
    leave(code)


class Parser(argparse.ArgumentParser):
    """Reports a wrong argument in one sentence instead of a usage listing."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        raise UserError(f"{message}. `{self.prog} --help` explains every argument.")


def module_name(main: Callable[[], int | None]) -> str:
    """The dotted name of a function's module, also where that runs as `python -m NAME`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if main.__module__ == "__main__" and spec else main.__module__


def leave(code: int) -> NoReturn:
    """End the process at once.

    Python and torch would take a second to clean up, and an edit in that second would be recorded.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:  # else it was closed from the start
                stream.flush()
        except OSError:  # a full disk behind a pipe that needs its reader
            code = code or 1
    os._exit(code)
