"""Cuts a split of documents into rows of a context's length, without copying its tokens.

The tokens of a split are `END document END document END ...`: one token, `end`, stands before and
after each document, as in GPT-2. Before a document it is what the first token is predicted from;
after one it is a target, so that a model learns where documents end.

A row is a range of these tokens. A document that fits a row is never cut; a longer one is cut into
rows that overlap by the token that the next row begins with. Attention stays within a document.
"""

import numpy as np

from .sequence_packing import IGNORE_INDEX

BLOCK_TOKENS = 1 << 22
"""Tokens searched for ends at a time, which bounds the memory besides the ends."""


def end_indices(tokens: np.ndarray, end: int) -> np.ndarray:
    """The indices of all `end` tokens, int64."""
    found = [
        start + np.flatnonzero(tokens[start : start + BLOCK_TOKENS] == end)
        for start in range(0, len(tokens), BLOCK_TOKENS)
    ]
    return np.concatenate([np.empty(0, np.int64), *found])


def document_rows(tokens: np.ndarray, end: int, context: int, overlap: int = 0) -> np.ndarray:
    """Rows that together have each token but the first of a split as a target once.

    Each row of the result (rows, 3), int64, is (first input, first input whose target is scored,
    index after the last input); an input's target is the token after it. A row has at most
    `context` inputs. Where it goes on with a long document, `overlap` inputs repeat those of the
    row before, as context.
    """
    ends, last = end_indices(tokens, end), len(tokens) - 1
    rows, scored = [], 0
    while scored < last:
        number = int(np.searchsorted(ends, scored, side="right")) - 1
        begin = int(ends[number]) if number >= 0 else 0
        first = max(begin, scored - overlap)
        stop = min(first + context, last)
        if stop < last:
            stop = _before_cut_document(ends, scored, stop, context)
        rows.append((first, scored, stop))
        scored = stop
    if rows and tokens[last] != end:
        # The split ends within a document. A full row needs no padding, which would look like its
        # end, so the last one begins earlier.
        rows[-1] = (min(rows[-1][0], max(0, last - context)), rows[-1][1], last)
    return np.array(rows, np.int64).reshape(-1, 3)


def _before_cut_document(ends: np.ndarray, scored: int, stop: int, context: int) -> int:
    """The index at which a row should end that would end at `stop`."""
    number = int(np.searchsorted(ends, stop, side="right")) - 1
    begin = int(ends[number]) if number >= 0 else 0
    after = int(ends[number + 1]) if number + 1 < len(ends) else stop + context
    fits = after - begin <= context
    return begin if begin > scored and fits else stop


def gather_rows(tokens: np.ndarray, rows: np.ndarray, length: int, end: int) -> np.ndarray:
    """The inputs of rows and the token after them, padded with `end`: int64 (B, length + 1)."""
    indices = rows[:, :1] + np.arange(length + 1)
    ids = tokens[np.minimum(indices, len(tokens) - 1)].astype(np.int64)
    ids[indices > rows[:, 2:]] = end
    return ids


def document_targets(ids: np.ndarray, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Targets and segments, (B, T) each, of rows (B, T + 1); inputs are `ids[:, :-1]`.

    A target is the next token, or `IGNORE_INDEX` in the padding. A token's segment is the number of
    documents that begin in its row up to it: attention stays within a segment.
    """
    begins = ids[:, :-1] == end
    padding = begins & (ids[:, 1:] == end)  # no document is empty
    targets = np.where(padding, IGNORE_INDEX, ids[:, 1:])
    return targets, np.cumsum(begins, axis=1)
