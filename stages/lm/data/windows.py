"""Which windows of tokens make up each batch of training, and gathering them.

A window is `context` tokens and the token that follows each of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class WindowSampler:
    """Which windows of a split make up each batch; a pure function of the seed and its number.

    Every epoch covers the whole split once, in its own random order, cut at its own random
    offset. Epochs follow each other without a gap: every batch is full, and a batch may end one
    epoch and begin the next.
    """

    tokens: int
    """Length of the split."""
    context: int
    batch: int
    """Windows in a batch."""
    seed: int

    @property
    def length(self) -> int:
        """Tokens in a window: `context`, or all a shorter split has."""
        return min(self.context, self.tokens - 1)

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch: one more than fit, because the offset cuts the outer two."""
        return -(-(self.tokens - 2) // self.length) + 1

    def num_batches(self, epochs: int) -> int:
        """Batches after which `epochs` epochs are over."""
        return -(-epochs * self.per_epoch // self.batch)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each window of an epoch, in order of the text."""
        offset = random.integers(1, self.length, endpoint=True)
        starts: np.ndarray = offset + self.length * np.arange(-1, self.per_epoch - 1)
        # The outer two windows reach over the split's ends; they are moved inside.
        return starts.clip(0, self.tokens - 1 - self.length)

    def batch_starts(self, number: int) -> np.ndarray:
        """First token of each window of a batch (counted from 0), shape (batch,)."""
        first = number * self.batch
        parts = []
        while (wanted := (number + 1) * self.batch - first) > 0:
            epoch, skipped = divmod(first, self.per_epoch)
            parts.append(epoch_starts(self, epoch)[skipped : skipped + wanted])
            first += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class PackedRowSampler(WindowSampler):
    """The same for records packed in rows of `context` + 1 tokens, laid one after the other."""

    @property
    def per_epoch(self) -> int:
        """Rows in an epoch."""
        return self.tokens // (self.context + 1)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each row."""
        return (self.context + 1) * np.arange(self.per_epoch)


@lru_cache(maxsize=2)
def epoch_starts(sampler: WindowSampler, epoch: int) -> np.ndarray:
    """First token of each window of an epoch, in order of training."""
    random = np.random.Generator(np.random.Philox(key=[sampler.seed, epoch]))
    return random.permutation(sampler.starts(random))


def gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows and the token after each: int64 of shape (len(starts), length + 1)."""
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
