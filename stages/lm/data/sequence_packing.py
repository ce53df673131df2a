"""Packs whole records into rows of equal length, and tells which tokens of a row are targets.

A record is a prompt, the token `prompt_end`, a completion and the token `record_end`. Completions
and their `record_end` are targets, prompts are context only.
"""

from bisect import bisect_left, insort

import numpy as np

from ..core.errors import UserError

IGNORE_INDEX = -1
"""Target of a position that counts for no loss."""


def record_bounds(tokens: np.ndarray, record_end: int) -> np.ndarray:
    """First index of each record and the index after its last, shape (records, 2)."""
    ends = np.flatnonzero(tokens == record_end) + 1
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def pack(tokens: np.ndarray, record_end: int, context: int, split: str) -> tuple[np.ndarray, int]:
    """All records of a split that fit, in rows of `context` inputs and the token after them.

    Each record goes to the row where it leaves the least free space (best fit).

    Returns:
        The rows, (rows, length + 1), padded with `record_end`; `length` is less than `context` only
        where one row holds all. And how many records were too long and left out.

    Raises:
        UserError: no record fits.
    """
    size = min(context + 1, len(tokens))
    free: list[tuple[int, int]] = []  # (free tokens, row), sorted; full rows are not in it
    rows: list[list[np.ndarray]] = []
    left_out = 0
    for begin, end in record_bounds(tokens, record_end).tolist():
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
    packed = np.full((len(rows), size), record_end, tokens.dtype)
    for row_tokens, records in zip(packed, rows, strict=True):
        joined = np.concatenate(records)
        row_tokens[: len(joined)] = joined
    return packed, left_out


def targets_and_segments(
    rows: np.ndarray, prompt_end: int, record_end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Targets and segments, (B, T) each, of packed rows (B, T + 1); inputs are `rows[:, :-1]`.

    A target is the next token where that belongs to a completion or ends it, else `IGNORE_INDEX`;
    so padding is no target. A token's segment is the number of records before its own: attention
    stays within a segment.
    """
    finished = np.cumsum(rows == record_end, axis=1)  # records up to and with this token
    in_completion = np.cumsum(rows == prompt_end, axis=1) - finished == 1
    targets = np.where(in_completion[:, :-1], rows[:, 1:].astype(np.int64), IGNORE_INDEX)
    segments = finished - (rows == record_end)
    return targets, np.ascontiguousarray(segments[:, :-1])


def scored_tokens(tokens: np.ndarray, prompt_end: int, record_end: int) -> int:
    """Number of tokens of whole records that are targets: completions and their ends."""
    prompts, ends = (np.flatnonzero(tokens == mark) for mark in (prompt_end, record_end))
    return int((ends - prompts).sum())
