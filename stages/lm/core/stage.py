"""Running a stage: exit codes, messages, and a check that nothing it depends on has changed."""

import sys
from collections.abc import Callable
from typing import NoReturn

from .errors import UserError
from .inputs import StageInputs


def run_stage(main: Callable[[], int | None]) -> NoReturn:
    """Run a stage's `main` and leave the process with its exit code.

    A `UserError` becomes one line on standard error and exit code 1. Any other exception is a
    defect of ours and keeps its traceback.
    """
    try:
        inputs = StageInputs(f"python -m {module_name(main)}")
        code = main() or 0
        if code == 0:  # otherwise DVC records nothing anyway
            inputs.check()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to start over", file=sys.stderr)
        code = 130
    sys.exit(code)


def module_name(main: Callable[[], int | None]) -> str:
    """The dotted name of a function's module, also where that runs as `python -m NAME`."""
    spec = sys.modules["__main__"].__spec__
    return spec.name if main.__module__ == "__main__" and spec else main.__module__
