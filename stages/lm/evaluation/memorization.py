"""What of a text stands word for word in the training text: how much of it, and where.

Every window of `span` bytes of the texts is hashed; then the training text is read once, block by
block, and each of its windows is looked up. A window that is found is compared byte by byte, so
that two windows with one hash are never taken for each other.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

SPAN_BYTES = 32
"""The shortest copy that counts: about six words, which chance seldom repeats."""

BLOCK_BYTES = 1 << 16
"""Training text read in one go; the arrays made for it stay in the processor's cache."""

MULTIPLIER = 0x9E3779B97F4A7C15
"""Base of the hash; any large odd number does."""


def copied_bytes(
    texts: Sequence[bytes], training: Iterable[bytes], span: int = SPAN_BYTES
) -> list[int]:
    """For each text, how many of its bytes lie in a span that occurs in the training text.

    A span is at least `span` consecutive bytes of one text. `training` comes in blocks of any
    size, one after the other, and is gone through once. Memory: a few hundred bytes for each byte
    of the texts, and as much for each byte of the largest block.
    """
    joined = np.frombuffer(b"".join(texts), np.uint8)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    bounds = [(int(end) - len(text), int(end)) for text, end in zip(texts, ends, strict=True)]
    # No window reaches from one text into the next.
    starts = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(first, end - span + 1) for first, end in bounds)]
    )
    if not starts.size:
        return [0] * len(texts)
    copied = starts[found_places(joined, starts, training, span) >= 0]
    steps = np.zeros(len(joined) + 1, np.int64)
    steps[copied] += 1
    steps[copied + span] -= 1
    covered = steps.cumsum() > 0
    return [int(covered[first:end].sum()) for first, end in bounds]


@dataclass(frozen=True)
class VerbatimSpan:
    """A part of a text that stands word for word in the training text; all in bytes."""

    start: int
    length: int
    place: int
    """Where it stands in the training text, or one of the places."""


def verbatim_spans(
    text: bytes, path: Path, size: int, span: int = SPAN_BYTES
) -> list[VerbatimSpan]:
    """The parts of `text` of `span` bytes or more that stand in the first `size` bytes of a file.

    In order, and none within another. Two may overlap where the file holds both but not what they
    make together. Each reaches as far as it does at the place where it was found.
    """
    data = np.frombuffer(text, np.uint8)
    starts = np.arange(len(text) - span + 1)
    if not starts.size or not size:
        return []
    places = found_places(data, starts, read_blocks(path, size), span)
    training = np.memmap(path, np.uint8, mode="r", shape=(size,))
    verbatim_spans, end = [], 0
    for start in np.flatnonzero(places >= 0).tolist():
        if start + span <= end:  # within the last one
            continue
        place = int(places[start])
        reach = min(len(text) - start, size - place)
        differs = np.flatnonzero(data[start : start + reach] != training[place : place + reach])
        length = int(differs[0]) if differs.size else reach
        verbatim_spans.append(VerbatimSpan(start, length, place))
        end = start + length
    return verbatim_spans


def found_places(
    text: np.ndarray, starts: np.ndarray, training: Iterable[bytes], span: int
) -> np.ndarray:
    """Where the window of `span` bytes at each of `starts` stands in `training`, or -1."""
    search = WindowSearch(text, starts, span)
    held, offset = b"", 0
    for block in training:
        held += block
        if len(held) >= span:
            search.look_through(np.frombuffer(held, np.uint8), offset)
            offset += len(held) - span + 1
            held = held[len(held) - span + 1 :]
    found: np.ndarray = search.places[search.which]
    return found


def read_blocks(path: Path, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, in blocks."""
    with path.open("rb") as file:
        while block := file.read(min(BLOCK_BYTES, size)):
            size -= len(block)
            yield block


def window_hashes(data: np.ndarray, span: int) -> np.ndarray:
    """A hash of each window of `span` bytes of uint8 (n,): uint64 of shape (n - span + 1,).

    The polynomial of Rabin and Karp modulo 2^64, by doubling: the hash of two neighbours makes
    that of a window twice as wide. (Where `span` is no power of two, the last two overlap.)
    """
    hashes, width, multiplier = data.astype(np.uint64), 1, MULTIPLIER
    while width < span:
        step = min(width, span - width)
        wider = hashes[:-step] * np.uint64(multiplier)
        wider += hashes[step:]
        hashes, width = wider, width + step
        multiplier = multiplier * multiplier % 2**64
    return hashes


class WindowSearch:
    """The distinct windows of some texts, in order of their hashes, and which have been found."""

    places: np.ndarray
    """Where each distinct window has been found, or -1, shape (windows,)."""
    which: np.ndarray
    """The distinct window that begins at each of `starts`, shape (len(starts),)."""

    def __init__(self, text: np.ndarray, starts: np.ndarray, span: int) -> None:
        self._span = span
        self._windows = sliding_window_view(text, span)
        hashes = window_hashes(text, span)[starts]
        order = np.argsort(hashes, kind="stable")
        starts, hashes = starts[order], hashes[order]
        new = np.ones(len(starts), bool)
        rows = self._windows[starts]
        new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1]).any(axis=1)
        self.which = np.empty(len(starts), np.int64)
        self.which[order] = new.cumsum() - 1
        self._starts, self._hashes = starts[new], hashes[new]
        self.places = np.full(len(self._starts), -1)
        # A slot is the windows whose hashes begin with the same bits; most slots are empty.
        self._shift = np.uint64(64 - (4 * len(self._starts)).bit_length())
        slots = self._slots(self._hashes)
        # How many of a slot's windows are still to be found, and where its first one is.
        self._left = np.bincount(slots, minlength=1 << (64 - int(self._shift))).astype(np.int32)
        self._first = np.concatenate([[0], self._left.cumsum()]).astype(np.int32)
        self._open = self._left > 0
        # Most windows that share a slot with one of ours differ from it in the bits that follow.
        self._following = np.zeros(len(self._left), bool)
        self._following[self._following_bits(self._hashes)] = True

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> self._shift).view(np.int64)

    def _following_bits(self, hashes: np.ndarray) -> np.ndarray:
        return self._slots(hashes << (np.uint64(64) - self._shift))

    def look_through(self, block: np.ndarray, offset: int) -> None:
        """Note every window that occurs in `block`, uint8 of at least `span` bytes at `offset`."""
        windows = sliding_window_view(block, self._span)
        hashes = window_hashes(block, self._span)
        slots = self._slots(hashes)
        # "clip" spares a check of the bounds, which hold anyway.
        places = np.flatnonzero(self._open.take(slots, mode="clip"))
        places = places[self._following[self._following_bits(hashes[places])]]
        hashes, slots = hashes[places], slots[places]
        candidates, ends = self._first[slots], self._first[slots + 1]
        while places.size:
            equal = (self._hashes[candidates] == hashes) & (self.places[candidates] < 0)
            ours, theirs = self._starts[candidates[equal]], places[equal]
            same = (self._windows[ours] == windows[theirs]).all(axis=1)
            found, which = np.unique(candidates[equal][same], return_index=True)
            self._mark(found, offset + theirs[same][which])
            candidates = candidates + 1
            more = candidates < ends
            places, hashes = places[more], hashes[more]
            candidates, ends = candidates[more], ends[more]

    def _mark(self, found: np.ndarray, places: np.ndarray) -> None:
        self.places[found] = places
        slots = self._slots(self._hashes[found])
        np.subtract.at(self._left, slots, 1)
        # What is found need not be looked up again: text full of repetitions goes as fast.
        self._open[slots] = self._left[slots] > 0
