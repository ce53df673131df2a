"""Splitting some tokens of a batch into the parts they were merged from (a regulariser)."""

import numpy as np


def split_tokens(
    rows: np.ndarray, merges: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """The same text in other tokens: about a `share` of them is taken apart, and their parts again.

    Each merge that made a token is undone with that probability (Sims et al. 2025, StochasTok, as a
    kin of BPE-dropout, Provilkov et al. 2020). rows (B, T) and the result have the same shape: what
    no longer fits is cut off.
    """
    length = rows.shape[1]
    split = []
    for row in rows:
        whole = np.zeros(length, dtype=bool)  # tokens that have had their chance
        while not whole.all():
            undone = ~whole & (merges[row, 0] != row) & (random.random(len(row)) < share)
            ends = np.cumsum(1 + undone)[undone]
            whole = np.ones(len(row) + len(ends), dtype=bool)
            whole[ends - 1] = whole[ends - 2] = False
            parts = merges[row[undone]]
            row = np.repeat(row, 1 + undone)
            row[ends - 2], row[ends - 1] = parts[:, 0], parts[:, 1]
            row, whole = row[:length], whole[:length]
        split.append(row)
    return np.stack(split)
