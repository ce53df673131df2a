"""Verbatim copies of the training text in a text: how many bytes, and where.

Every window of `span` bytes of the texts is hashed into a table. Then the training text is read
once, block by block, and each of its windows is looked up. Equal hashes are confirmed by comparing
the bytes, so collisions cause no errors.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..data.token_text import TokenText
from ..text.shingles import window_hashes

SPAN_BYTES = 32
"""Minimum length of a copy: about six words, which rarely repeat by chance."""

COMPARED_BYTES = 1_000_000
"""At most this much held-out text is searched for in the training text."""


def copied_bytes(
    texts: Sequence[bytes], training: Iterable[bytes], span: int = SPAN_BYTES
) -> list[int]:
    """For each text, how many of its bytes lie in a span that occurs in the training text.

    A span is at least `span` consecutive bytes of one text. `training` is consecutive blocks of any
    size, read once. Memory: a few hundred bytes for each byte of the texts and of the largest
    block.
    """
    joined = np.frombuffer(b"".join(texts), np.uint8)
    ends = np.cumsum([len(text) for text in texts], dtype=np.int64)
    bounds = [(int(end) - len(text), int(end)) for text, end in zip(texts, ends, strict=True)]
    # Only windows that lie within one text.
    starts = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(first, end - span + 1) for first, end in bounds)]
    )
    if not starts.size:
        return [0] * len(texts)
    copied = starts[window_offsets(joined, starts, training, span) >= 0]
    steps = np.zeros(len(joined) + 1, np.int64)
    steps[copied] += 1
    steps[copied + span] -= 1
    covered = steps.cumsum() > 0
    return [int(covered[first:end].sum()) for first, end in bounds]


@dataclass(frozen=True)
class VerbatimSpan:
    """A part of a text that occurs word for word in the training text. All numbers are bytes."""

    start: int
    """Offset in the text."""
    length: int
    offset: int
    """Offset in the training text, of one occurrence."""


def verbatim_spans(text: bytes, training: TokenText, span: int = SPAN_BYTES) -> list[VerbatimSpan]:
    """The parts of `text` of `span` bytes or more that occur in the training text.

    Sorted, and none contains another. Two overlap where the training text has each but not their
    union. Each is as long as the match at its offset.
    """
    data = np.frombuffer(text, np.uint8)
    starts = np.arange(len(text) - span + 1)
    if not starts.size:
        return []
    offsets = window_offsets(data, starts, training.blocks(), span)
    spans, end = [], 0
    for start in np.flatnonzero(offsets >= 0).tolist():
        if start + span <= end:  # inside the previous span
            continue
        offset = int(offsets[start])
        there = np.frombuffer(training.read(offset, len(text) - start), np.uint8)
        differs = np.flatnonzero(data[start : start + len(there)] != there)
        length = int(differs[0]) if differs.size else len(there)
        spans.append(VerbatimSpan(start, length, offset))
        end = start + length
    return spans


def copied_shares(
    training: Iterable[bytes], held_out: bytes, samples: list[bytes]
) -> dict[str, float]:
    """The shares of sampled and of held-out text that are copies of the training text.

    Human writers repeat themselves too, so the held-out share is the value to compare the samples
    with.
    """
    *copied, held_out_copied = copied_bytes([*samples, held_out], training)
    size = sum(len(sample) for sample in samples)
    return {
        "span_bytes": SPAN_BYTES,
        "sampled_bytes": size,
        "copied_share": round(sum(copied) / max(1, size), 4),
        "held_out_copied_share": round(held_out_copied / len(held_out), 4),
    }


def window_offsets(
    text: np.ndarray, starts: np.ndarray, training: Iterable[bytes], span: int
) -> np.ndarray:
    """For the window at each of `starts`, an offset at which it occurs in `training`, or -1."""
    search = WindowSearch(text, starts, span)
    unread, offset = b"", 0
    for block in training:
        unread += block
        if len(unread) >= span:
            search.search(np.frombuffer(unread, np.uint8), offset)
            offset += len(unread) - span + 1
            unread = unread[len(unread) - span + 1 :]
    offsets: np.ndarray = search.offsets[search.window_ids]
    return offsets


class WindowSearch:
    """A table of the distinct windows of a text, sorted by hash, and where each was found.

    The leading bits of a hash select a slot, which holds a run of consecutive windows; there are
    several slots for each window, so most are empty.
    """

    offsets: np.ndarray
    """Where in the training text each distinct window was found, or -1; shape (windows,)."""
    window_ids: np.ndarray
    """The distinct window that begins at each of `starts`; shape (len(starts),)."""

    def __init__(self, text: np.ndarray, starts: np.ndarray, span: int) -> None:
        self._span = span
        self._windows = sliding_window_view(text, span)
        hashes = window_hashes(text, span)[starts]
        order = np.argsort(hashes, kind="stable")
        starts, hashes = starts[order], hashes[order]
        is_new = np.ones(len(starts), bool)
        rows = self._windows[starts]
        is_new[1:] = (hashes[1:] != hashes[:-1]) | (rows[1:] != rows[:-1]).any(axis=1)
        self.window_ids = np.empty(len(starts), np.int64)
        self.window_ids[order] = is_new.cumsum() - 1
        self._starts, self._hashes = starts[is_new], hashes[is_new]
        self.offsets = np.full(len(self._starts), -1)
        self._shift = np.uint64(64 - (4 * len(self._starts)).bit_length())
        slots = self._slots(self._hashes)
        # For each slot: the number of windows not found yet, and the index of its first window.
        self._unfound = np.bincount(slots, minlength=1 << (64 - int(self._shift))).astype(np.int32)
        self._first = np.concatenate([[0], self._unfound.cumsum()]).astype(np.int32)
        self._slot_open = self._unfound > 0
        # Second filter on further hash bits: rejects most collisions without comparing bytes.
        self._second_filter = np.zeros(len(self._unfound), bool)
        self._second_filter[self._second_bits(self._hashes)] = True

    def _slots(self, hashes: np.ndarray) -> np.ndarray:
        return (hashes >> self._shift).view(np.int64)

    def _second_bits(self, hashes: np.ndarray) -> np.ndarray:
        return self._slots(hashes << (np.uint64(64) - self._shift))

    def search(self, block: np.ndarray, offset: int) -> None:
        """Record windows that occur in `block`, uint8 (n >= span,); `offset` is its position."""
        windows = sliding_window_view(block, self._span)
        hashes = window_hashes(block, self._span)
        slots = self._slots(hashes)
        # mode="clip" skips the bounds check: every slot is in range.
        positions = np.flatnonzero(self._slot_open.take(slots, mode="clip"))
        positions = positions[self._second_filter[self._second_bits(hashes[positions])]]
        hashes, slots = hashes[positions], slots[positions]
        candidates, ends = self._first[slots], self._first[slots + 1]
        while positions.size:
            equal = (self._hashes[candidates] == hashes) & (self.offsets[candidates] < 0)
            ours, theirs = self._starts[candidates[equal]], positions[equal]
            same = (self._windows[ours] == windows[theirs]).all(axis=1)
            found, first = np.unique(candidates[equal][same], return_index=True)
            self._mark(found, offset + theirs[same][first])
            candidates = candidates + 1
            more = candidates < ends
            positions, hashes = positions[more], hashes[more]
            candidates, ends = candidates[more], ends[more]

    def _mark(self, found: np.ndarray, offsets: np.ndarray) -> None:
        self.offsets[found] = offsets
        slots = self._slots(self._hashes[found])
        np.subtract.at(self._unfound, slots, 1)
        # Slots without unfound windows are skipped, so repetitive training text costs no more.
        self._slot_open[slots] = self._unfound[slots] > 0
