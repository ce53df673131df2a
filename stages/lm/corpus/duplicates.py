"""Finds documents that are equal or nearly equal, with a few hundred bytes of memory for each.

Equal documents have one digest. For nearly equal ones, the windows of `SPAN` bytes of a document
are hashed and the smallest hashes kept (bottom-k sketch, Broder 1997): the share that two sketches
have in common estimates the share of windows that the documents have in common.
"""

import hashlib
from array import array
from dataclasses import dataclass

import numpy as np

from ..text.shingles import window_hashes

SPAN = 16
"""Bytes of a window: about three words."""
SKETCH = 32
"""Hashes kept of a document."""
KEYS = 4
"""Documents are compared if they share one of so many smallest hashes."""
SIMILAR = 0.75
"""Documents with this share of windows in common, as far as the sketches tell, are nearly equal."""
MIN_BYTES = 256
"""Shorter documents, such as names and titles, are compared as wholes only."""
BLOCK_BYTES = 1 << 18
PAIRS_AT_ONCE = 1 << 16
_NONE = np.uint64(2**64 - 1)


@dataclass(frozen=True)
class Duplicates:
    """Which documents are equal."""

    first: np.ndarray
    """For each document, the index of the first that is equal or nearly equal to it."""
    equal: int
    """Documents that an earlier one equals."""
    similar: int
    """Documents that an earlier one nearly equals."""


class DuplicateFinder:
    """Takes documents one by one, each in pieces, and then says which are equal."""

    def __init__(self) -> None:
        self._digests = array("Q")
        self._sketched = array("q")
        self._sketches = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self._smallest, self._size = np.empty(0, np.uint64), 0

    def add(self, piece: bytes, more: bool) -> None:
        """A piece of a document; `more` of it follow, or this is its last."""
        self._digest.update(piece)
        self._size += len(piece)
        if len(piece) >= SPAN and (more or self._size >= MIN_BYTES):
            self._smallest = smaller_hashes(self._smallest, piece)
        if more:
            return
        self._digests.append(int.from_bytes(self._digest.digest(), "little"))
        if self._size >= MIN_BYTES:
            self._sketched.append(len(self._digests) - 1)
            padding = np.full(SKETCH - len(self._smallest), _NONE)
            self._sketches += np.concatenate([self._smallest, padding]).tobytes()
        self._begin()

    @property
    def digests(self) -> np.ndarray:
        """A hash of each document, uint64."""
        return np.frombuffer(self._digests, np.uint64)

    def found(self) -> Duplicates:
        """What is equal among all documents so far."""
        _, firsts, inverse = np.unique(self.digests, return_index=True, return_inverse=True)
        parents = firsts[inverse]
        equal = int((parents != np.arange(len(parents))).sum())
        documents = np.frombuffer(self._sketched, np.int64)
        sketches = np.frombuffer(self._sketches, np.uint64).reshape(-1, SKETCH)
        whole = parents[documents] == documents
        for one, other in similar_pairs(sketches[whole], documents[whole]).tolist():
            low, high = sorted((_root(parents, one), _root(parents, other)))
            parents[high] = low
        while (parents[parents] != parents).any():
            parents = parents[parents]
        total = int((parents != np.arange(len(parents))).sum())
        return Duplicates(parents, equal, total - equal)


def _root(parents: np.ndarray, index: int) -> int:
    while parents[index] != index:
        index = int(parents[index])
    return index


def smaller_hashes(smallest: np.ndarray, piece: bytes) -> np.ndarray:
    """The `SKETCH` smallest of some hashes and of those of the windows of a piece: sorted."""
    data = np.frombuffer(piece, np.uint8)
    for start in range(0, len(data) - SPAN + 1, BLOCK_BYTES):
        hashes = window_hashes(data[start : start + BLOCK_BYTES + SPAN - 1], SPAN)
        hashes ^= hashes >> np.uint64(32)  # the low bits of the product depend on few bytes
        hashes *= np.uint64(0xD6E8FEB86659FD93)
        below = np.uint64(2**64 - 1) // np.uint64(len(hashes)) * np.uint64(4 * SKETCH)
        if len(smallest) == SKETCH:
            hashes = hashes[hashes < smallest[-1]]
        elif len(hashes) > 8 * SKETCH and len(few := hashes[hashes < below]) >= SKETCH:
            hashes = few  # of most texts; those with few different windows take longer
        smallest = np.unique(np.concatenate([smallest, hashes]))[:SKETCH]
    return smallest


def similar_pairs(sketches: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """The numbers in `documents` of pairs of sketches that are similar: (pairs, 2)."""
    keys = sketches[:, :KEYS].reshape(-1)
    owners = np.repeat(np.arange(len(sketches)), KEYS)
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    same = (keys[1:] == keys[:-1]) & (keys[1:] != _NONE)
    pairs = np.unique(np.stack([owners[:-1][same], owners[1:][same]], axis=1), axis=0)
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(pairs), PAIRS_AT_ONCE):
        part = pairs[start : start + PAIRS_AT_ONCE]
        found.append(part[common_share(sketches[part[:, 0]], sketches[part[:, 1]]) >= SIMILAR])
    return documents[np.concatenate(found)]


def common_share(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each pair of sketches (pairs, SKETCH), the share of the union's smallest in both."""
    union = np.sort(np.concatenate([ones, others], axis=1), axis=1)
    twice = (union[:, 1:] == union[:, :-1]) & (union[:, 1:] != _NONE)
    is_new = np.concatenate([np.ones((len(union), 1), bool), ~twice], axis=1) & (union != _NONE)
    ranks = np.cumsum(is_new, axis=1)
    counted = np.minimum(ranks[:, -1], SKETCH)
    share: np.ndarray = (twice & (ranks[:, 1:] <= SKETCH)).sum(axis=1) / np.maximum(counted, 1)
    return share
