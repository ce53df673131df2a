"""Which documents are train, val and test."""

import re

import numpy as np

from ..core.errors import UserError
from ..data.splits import SPLITS

LEFT_OUT = -1
"""In place of a split: the document is not used."""
_GIVEN = {
    "train": re.compile(r"train(?![^\W\d_])", re.IGNORECASE),
    "val": re.compile(r"val(id|idation)?(?![^\W\d_])", re.IGNORECASE),
    "test": re.compile(r"test(?![^\W\d_])", re.IGNORECASE),
}


def given_split(name: str) -> str | None:
    """The split that a file or folder is for by its name, such as `val.txt` or `test-2/a.md`."""
    return next((split for split, form in _GIVEN.items() if form.match(name)), None)


def held_out_copies(given: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Which documents are not used because a file for val or test has a copy: bool.

    `given` holds indices in `SPLITS`, or -1. Of copies in both, that in val is not used.
    """
    val, test = (np.isin(first, first[given == number]) for number in (1, 2))
    copies: np.ndarray = ((given <= 0) & (val | test)) | ((given == 1) & test)
    return copies


def split_by_hash(
    sizes: np.ndarray, groups: np.ndarray, hashes: np.ndarray, shares: dict[str, float]
) -> np.ndarray:
    """The index in `SPLITS` of each document, int8, by the order of their `hashes`.

    So the splits do not depend on names. `shares` says how much of all bytes val, test or both get;
    each has at least one document. Equal documents have the same number in `groups` and the same
    hash, and are in one split.

    Raises:
        UserError: there are too few different documents.
    """
    order = np.lexsort((groups, hashes))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    if len(starts) <= len(shares):
        raise UserError(
            f"{len(starts)} different document{'s'[: len(starts) - 1]} cannot be split into train "
            f"and {' and '.join(shares)}; add documents."
        )
    ends = np.cumsum(np.add.reduceat(sizes[order], starts))
    # By its middle, a document that is a large part of all is in train, wherever it stands.
    middles = (ends - np.diff(ends, prepend=0) / 2) / ends[-1]
    splits, limit, after = np.zeros(len(order), np.int8), 1.0, len(starts)
    for least, split in reversed(list(enumerate(shares, 1))):  # the last ones are test
        limit -= shares[split]
        begin = min(max(int(np.searchsorted(middles, limit)), least), after - 1)
        until = starts[after] if after < len(starts) else None
        splits[order[starts[begin] : until]] = SPLITS.index(split)
        after = begin
    return splits
