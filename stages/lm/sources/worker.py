"""The process that `isolation.py` asks: reads a file, within limits, and answers in JSON lines.

An answer is `["part", value]` any number of times, then `["end", null]`,
`["unusable", reason]`, or `["refused", sentence]` if the system could not read it.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import UserError
from ..core.files import UnreadableError
from .files import SourceFile, expansion_of, open_source

MAX_MEMORY = 2 << 30
"""Bytes of address space, of which the libraries reserve a part without using it."""
MAX_SECONDS = 60
"""Processor time until the next part."""
PART_CHARACTERS = 1 << 20
FULL = "it takes more memory than it may, as damaged files do"


def main() -> None:
    """Answer until there are no more questions."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    limit_memory()
    for request in sys.stdin.buffer:
        asked = json.loads(request)
        values = asked["file"] | {"path": Path(asked["file"]["path"])}
        answer(SourceFile(**values), asked["limit"], answers)
        answers.flush()


def limit_memory() -> None:
    """Let no file take all memory, where the system has such a limit."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def limit_time() -> None:
    """End this process if it is still at the same part after `MAX_SECONDS`."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)


def answer(file: SourceFile, limit: int | None, answers: BinaryIO) -> None:
    """Write the first `limit` parts of a file, or all."""
    last: tuple[str, Any] = ("end", None)
    allowed = expansion_of(file)
    limit_time()
    try:
        for part in islice(parts(file), limit):
            line = json.dumps(["part", part], ensure_ascii=False).encode() + b"\n"
            allowed -= len(line)
            if allowed < 0:
                raise UserError("it expands to far more than its size, which no text of use does")
            answers.write(line)
            limit_time()
    except UnreadableError as error:
        full = isinstance(error.__cause__, MemoryError)
        last = ("unusable", FULL) if full else ("refused", str(error))
    except UserError as error:
        last = "unusable", str(error)
    except MemoryError:
        last = "unusable", FULL
    except Exception as error:  # of any library, about any damage
        last = "unusable", f"damaged, or of a kind that cannot be read ({error or type(error)})"
    answers.write(json.dumps(last).encode()[:100_000] + b"\n")


def parts(file: SourceFile) -> Iterator[Any]:
    """The rows, or the text in parts of bounded size."""
    with open_source(file) as source:
        if file.format == "parquet":
            from .parquet import parquet_rows

            yield from parquet_rows(source)
            return
        from .markup import READERS

        for text in READERS[file.format](source):
            for at in range(0, len(text), PART_CHARACTERS):
                yield text[at : at + PART_CHARACTERS]


if __name__ == "__main__":
    main()
