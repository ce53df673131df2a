"""Splitting some tokens of a batch into the parts they were merged from (a regulariser)."""

import numpy as np

from ..data.sequence_packing import LAST, LEARNED, ids_of


def split_tokens(
    rows: np.ndarray, merges: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """Re-tokenize rows of tokens by undoing merges at random; the text stays the same.

    Each merge is undone with probability `share`, and then those of the two parts (StochasTok, Sims
    et al. 2025; related to BPE-dropout, Provilkov et al. 2020). rows and the result are (B, T):
    tokens beyond T are cut off. Parts carry the mark `LEARNED` of the whole.
    """
    length = rows.shape[1]
    split = []
    for row in rows:
        settled = np.zeros(length, dtype=bool)  # tokens that stay as they are
        while not settled.all():
            ids, learned = ids_of(row), row & LEARNED
            undone = ~settled & (merges[ids, 0] != ids) & (random.random(len(row)) < share)
            undone &= (row & LAST) == 0
            ends = np.cumsum(1 + undone)[undone]
            settled = np.ones(len(row) + len(ends), dtype=bool)
            settled[ends - 1] = settled[ends - 2] = False
            parts = merges[ids[undone]] | learned[undone, None]
            row = np.repeat(row, 1 + undone)
            row[ends - 2], row[ends - 1] = parts[:, 0], parts[:, 1]
            row, settled = row[:length], settled[:length]
        split.append(row)
    return np.stack(split)
