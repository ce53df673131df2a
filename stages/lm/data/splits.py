"""Where the train, val and test parts of a text lie, and reading them in chunks no token spans."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..core.errors import UserError
from ..core.paths import shown

SPLITS = ("train", "val", "test")
"""In the order in which they lie in the text."""


CHUNK_BYTES = 1 << 20


MAX_CHUNK_BYTES = 2 << 20


# A newline between a character that is not white space and one that is neither white space nor
# "/": no pattern in `tokenizer.PATTERNS` makes a token across the point after it. The classes are
# of bytes, and leave out every byte that can end or begin a white-space character in UTF-8.
_SAFE_CUT = re.compile(
    rb"(?<=[!-~\xab-\xae\xb0-\xbf]\n)(?=[!-.0-~\xc3-\xdf\xe4-\xf4]|\xe3[\x81-\xbf])"
)


def split_bounds(size: int, val_fraction: float, test_fraction: float) -> dict[str, range]:
    """Where each split of a text of `size` bytes lies: train first, then val, then test."""
    train_end = int(size * (1 - val_fraction - test_fraction) + 1e-6)
    test_start = max(train_end, int(size * (1 - test_fraction) + 1e-6))
    return {
        "train": range(0, train_end),
        "val": range(train_end, test_start),
        "test": range(test_start, size),
    }


def read_chunks(path: Path, part: range) -> Iterator[bytes]:
    """The bytes of `part` of a file, about a MiB at a time, cut where no token can span.

    Text without such a place (a line of more than 2 MiB) is cut between two characters.
    """
    with path.open("rb") as file:
        file.seek(part.start)
        left, held = len(part), b""
        while left:
            fresh = file.read(min(CHUNK_BYTES, left))
            if not fresh:
                raise UserError(f"{shown(path)} became shorter while it was read; try again.")
            left -= len(fresh)
            held += fresh
            cut = 0
            for match in _SAFE_CUT.finditer(held, max(0, len(held) - len(fresh) - 4)):
                cut = match.start()
            if not cut and len(held) >= MAX_CHUNK_BYTES:
                cut = len(held) - 1
                while cut > len(held) - 4 and held[cut] & 0xC0 == 0x80:
                    cut -= 1
            if cut and left:
                yield held[:cut]
                held = held[cut:]
        if held:
            yield held
