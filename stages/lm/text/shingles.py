"""Hashes of all windows of some bytes."""

import numpy as np

MULTIPLIER = 0x9E3779B97F4A7C15
"""Base of the polynomial hash: any large odd number (this is 2^64 / golden ratio)."""


def window_hashes(data: np.ndarray, span: int) -> np.ndarray:
    """A hash of each window of `span` bytes of uint8 (n,): uint64 of shape (n - span + 1,).

    The polynomial hash of Rabin and Karp modulo 2^64, by doubling: the hashes of two adjacent
    windows give that of one twice as wide (if `span` is no power of two, the last two overlap).
    """
    hashes, width, multiplier = data.astype(np.uint64), 1, MULTIPLIER
    while width < span:
        step = min(width, span - width)
        wider = hashes[:-step] * np.uint64(multiplier)
        wider += hashes[step:]
        hashes, width = wider, width + step
        multiplier = multiplier * multiplier % 2**64
    return hashes
