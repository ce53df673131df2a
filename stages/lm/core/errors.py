"""Mistakes of the user become one line on standard error; defects of ours keep their traceback."""

import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from .console import STOPPED, need_no_reader


class UserError(Exception):
    """A mistake or accident that the user can mend.

    The message names the key or file, its value, the likely cause and the remedy. It is made one
    line of less than 2,000 characters, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) < 2000 else f"{line[:1000]} ... {line[-800:]}")


def run_stage(
    main: Callable[[], int | None], unread: tuple[str, ...] = ("stdout", "stderr")
) -> NoReturn:
    """Run a stage's `main` and leave the process with its exit code.

    A `UserError` becomes one line on standard error and exit code 1. Any other exception is a
    defect of ours and keeps its traceback. The outputs named in `unread` need no reader.
    """
    for name in unread:
        need_no_reader(name)
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        code = 130
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the rest takes a moment and cannot be undone
    sys.exit(code)
