"""Which bytes of a text are train, val and test, and reading them in chunks no token spans."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown

SPLITS = ("train", "val", "test")
"""In the order in which they follow each other in the text."""
CHUNK_BYTES = 1 << 20
"""Bytes read at once."""
MAX_CHUNK_BYTES = 2 << 20
"""From this length on a chunk is cut between any two characters."""

# The point after a newline that follows a character other than white space and precedes one other
# than white space and "/", or before the space between two letters: no pattern in
# `tokenizer.PATTERNS` matches across it. The classes hold bytes, and leave out every byte that can
# end or begin a white-space character in UTF-8.
_SAFE_CUT = re.compile(
    rb"(?<=[!-~\xab-\xae\xb0-\xbf]\n)(?=[!-.0-~\xc3-\xdf\xe4-\xf4]|\xe3[\x81-\xbf])"
    rb"|(?<=[A-Za-z])(?= [A-Za-z])"
)


def split_bounds(size: int, val_fraction: float, test_fraction: float) -> dict[str, range]:
    """The bytes of each split of a text of `size` bytes: train first, then val, then test."""
    train_end = int(size * (1 - val_fraction - test_fraction) + 1e-6)
    test_start = max(train_end, int(size * (1 - test_fraction) + 1e-6))
    return {
        "train": range(0, train_end),
        "val": range(train_end, test_start),
        "test": range(test_start, size),
    }


def read_chunks(path: Path, part: range) -> Iterator[bytes]:
    """The bytes of `part` of a file, about a MiB at a time, cut where no token can span the cut.

    Text without such a point (2 MiB of base64 in a line) is cut between two characters.

    Raises:
        UserError: the file cannot be read, or becomes shorter while it is read.
    """
    with read_errors(path), path.open("rb") as file:
        file.seek(part.start)
        left, pending = len(part), b""
        while left:
            fresh = file.read(min(CHUNK_BYTES, left))
            if not fresh:
                raise UserError(f"{shown(path)} became shorter while it was read; try again.")
            left -= len(fresh)
            pending += fresh
            cut = _last_safe_cut(pending, max(0, len(pending) - len(fresh) - 4))
            if not cut and len(pending) >= MAX_CHUNK_BYTES:
                cut = len(pending) - 1
                while cut > len(pending) - 4 and pending[cut] & 0xC0 == 0x80:
                    cut -= 1
            if cut and left:
                yield pending[:cut]
                pending = pending[cut:]
        if pending:
            yield pending


def _last_safe_cut(data: bytes, start: int) -> int:
    """The last place from `start` on where `data` may be cut; 0 if there is none."""
    reach = 1 << 10  # it is near the end, as a rule
    while True:
        begin = max(start, len(data) - reach)
        cuts = [match.start() for match in _SAFE_CUT.finditer(data, begin)]
        if cuts or begin == start:
            return cuts[-1] if cuts else 0
        reach *= 16
