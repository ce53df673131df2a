"""Mistakes of the user become one line on standard error; defects of ours keep their traceback."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake or accident that the user can mend.

    The message names the key or file, its value, the likely cause and the remedy. It is made one
    line of less than 2,000 characters, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        super().__init__(line if len(line) < 2000 else f"{line[:1000]} ... {line[-800:]}")


def run_stage(main: Callable[[], int | None]) -> NoReturn:
    """Run a stage's `main` and leave the process with its exit code.

    A `UserError` becomes one line on standard error and exit code 1. Any other exception is a
    defect of ours and keeps its traceback.
    """
    try:
        code = main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to start over", file=sys.stderr)
        code = 130
    sys.exit(code)
