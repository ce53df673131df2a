"""Packs whole sequences into rows of equal length, and tells which tokens of a row are targets.

A sequence is a record: prompts and answers in turn. Its tokens carry marks in the high bits of
their ids (uint32): those of answers and of their ends are `LEARNED`, the others are context only.
"""

from bisect import bisect_left, insort

import numpy as np

from ..core.errors import UserError

IGNORE_INDEX = -1
"""Target of a position that counts for no loss."""
LEARNED = 1 << 30
"""Mark of a token that the model learns to write."""
LAST = 1 << 31
"""Mark of the last token of a sequence."""


def ids_of(tokens: np.ndarray) -> np.ndarray:
    """Tokens without their marks."""
    return tokens & (LEARNED - 1)


def sequence_bounds(tokens: np.ndarray) -> np.ndarray:
    """First index of each sequence and the index after its last, shape (sequences, 2)."""
    ends = np.flatnonzero(tokens & LAST) + 1
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def pack(tokens: np.ndarray, context: int, split: str) -> tuple[np.ndarray, int]:
    """All sequences of a split that fit, in rows of `context` inputs and the token after them.

    Each goes to the row where it leaves the least free space (best fit).

    Returns:
        The rows, (rows, length + 1), padded with sequences of one token; `length` is less than
        `context` only where one row holds all. And how many were too long and left out.

    Raises:
        UserError: no record fits.
    """
    size = min(context + 1, len(tokens))
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted; full rows are not in it
    rows: list[list[np.ndarray]] = []
    left_out = 0
    for begin, end in sequence_bounds(tokens).tolist():
        length = end - begin
        if length > size:
            left_out += 1
            continue
        best = bisect_left(free, (length, 0))
        if best == len(free):
            free.append((size, len(rows)))
            rows.append([])
        space, row = free.pop(best)
        rows[row].append(tokens[begin:end])
        if space > length:
            insort(free, (space - length, row))
    if not rows:
        raise UserError(
            f"no record of the {split} split fits model.context, {context} tokens; raise "
            "model.context, or shorten the records."
        )
    packed = np.full((len(rows), size), LAST, tokens.dtype)
    for row_tokens, parts in zip(packed, rows, strict=True):
        joined = np.concatenate(parts)
        row_tokens[: len(joined)] = joined
    return packed, left_out


def targets_and_segments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets and segments, (B, T) each, of packed rows (B, T + 1); inputs are those of `ids_of`.

    A target is the next token where the model learns it, else `IGNORE_INDEX`. A token's segment is
    the number of sequences before its own: attention stays within a segment.
    """
    following = rows[:, 1:]
    targets = np.where(following & LEARNED, ids_of(following).astype(np.int64), IGNORE_INDEX)
    last = (rows & LAST) > 0
    segments: np.ndarray = np.cumsum(last, axis=1) - last
    return targets, np.ascontiguousarray(segments[:, :-1])


def last_answers(tokens: np.ndarray) -> list[tuple[list[int], list[int]]]:
    """Of each sequence, the ids before its last answer and those of that answer."""
    found = []
    for begin, end in sequence_bounds(tokens).tolist():
        sequence = tokens[begin:end]
        context = np.flatnonzero((sequence & LEARNED) == 0)[-1] + 1
        ids = ids_of(sequence).tolist()
        found.append((ids[:context], ids[context:]))
    return found
