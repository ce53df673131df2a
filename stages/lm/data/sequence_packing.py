"""Rows of whole records for training and scoring, and what in them is learned.

All of it is a function of token ids: a prompt reaches up to the token `prompt_end`, its completion
up to the token `record_end`. Knows nothing about text or models.
"""

from bisect import bisect_left, insort

import numpy as np

from ..core.errors import UserError

IGNORE_INDEX = -1
"""In the place of a target that is not to be learned."""


def record_bounds(tokens: np.ndarray, record_end: int) -> np.ndarray:
    """Where each record begins and ends, (records, 2)."""
    ends = np.flatnonzero(tokens == record_end) + 1
    return np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1)


def pack(tokens: np.ndarray, record_end: int, context: int, split: str) -> tuple[np.ndarray, int]:
    """All records of a split that fit, in rows of `context` inputs and the token after them.

    Returns (rows, length + 1), padded with `record_end`, and how many records were too long. Each
    record goes where it leaves the least room (best fit); `length` is less than `context` only
    where one row holds all.

    Raises:
        UserError: none fits.
    """
    size = min(context + 1, len(tokens))
    room: list[tuple[int, int]] = []
    rows: list[list[np.ndarray]] = []
    left_out = 0
    for begin, end in record_bounds(tokens, record_end).tolist():
        if end - begin > size:
            left_out += 1
            continue
        place = bisect_left(room, (end - begin, 0))
        if place == len(room):
            room.append((size, len(rows)))
            rows.append([])
        free, row = room.pop(place)
        rows[row].append(tokens[begin:end])
        if free > end - begin:
            insort(room, (free - (end - begin), row))
    if not rows:
        raise UserError(
            f"no record of the {split} split fits model.context, {context} tokens; raise "
            "model.context, or shorten the records."
        )
    packed = np.full((len(rows), size), record_end, tokens.dtype)
    for whole, parts in zip(packed, rows, strict=True):
        joined = np.concatenate(parts)
        whole[: len(joined)] = joined
    return packed, left_out


def targets_and_segments(
    rows: np.ndarray, prompt_end: int, record_end: int
) -> tuple[np.ndarray, np.ndarray]:
    """Of rows (B, T + 1) that begin with a record: targets and segments of the inputs, (B, T) each.

    Targets are the next tokens where they belong to a completion or end it, `IGNORE_INDEX`
    elsewhere; the segment of a token counts the records before its own. Padding is never a target.
    """
    over = np.cumsum(rows == record_end, axis=1)
    answering = np.cumsum(rows == prompt_end, axis=1) - over == 1
    targets = np.where(answering[:, :-1], rows[:, 1:].astype(np.int64), IGNORE_INDEX)
    segments = over - (rows == record_end)
    return targets, np.ascontiguousarray(segments[:, :-1])


def scored_tokens(tokens: np.ndarray, prompt_end: int, record_end: int) -> int:
    """How many tokens belong to completions or end them, among whole records."""
    prompts, ends = (np.flatnonzero(tokens == mark) for mark in (prompt_end, record_end))
    return int((ends - prompts).sum())
