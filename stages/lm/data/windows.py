"""Which windows of tokens make up the batch of each training step, and gathering them.

A window is `context` tokens and the token that follows each of them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class WindowSampler:
    """Which windows of a split make up the batch of each step; a pure function of (seed, step).

    Every epoch covers the whole split once, in its own random order, cut at its own random
    offset. Epochs follow each other without a gap: every batch is full, and a batch may end one
    epoch and begin the next.
    """

    tokens: int
    """Length of the split."""
    context: int
    batch: int
    """Windows in a step."""
    seed: int

    @property
    def length(self) -> int:
        """Tokens in a window: `context`, or all a shorter split has."""
        return min(self.context, self.tokens - 1)

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch: one more than fit, because the offset cuts the outer two."""
        return -(-(self.tokens - 2) // self.length) + 1

    def steps(self, epochs: int) -> int:
        """Steps after which `epochs` epochs are over."""
        return -(-epochs * self.per_epoch // self.batch)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each window of an epoch, in order of the text."""
        offset = random.integers(1, self.length, endpoint=True)
        starts: np.ndarray = offset + self.length * np.arange(-1, self.per_epoch - 1)
        # The outer two windows reach over the split's ends; they are moved inside.
        return starts.clip(0, self.tokens - 1 - self.length)

    def batch_starts(self, step: int) -> np.ndarray:
        """First token of each window of a step (counted from 0), shape (batch,)."""
        first = step * self.batch
        parts = []
        while (wanted := (step + 1) * self.batch - first) > 0:
            epoch, place = divmod(first, self.per_epoch)
            parts.append(epoch_starts(self, epoch)[place : place + wanted])
            first += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class PackedRowSampler(WindowSampler):
    """The same for a split that is cut into rows of `context` + 1 tokens once and for all."""

    @property
    def per_epoch(self) -> int:
        """Rows in an epoch."""
        return self.tokens // (self.context + 1)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each row."""
        return (self.context + 1) * np.arange(self.per_epoch)


@lru_cache(maxsize=2)
def epoch_starts(order: WindowSampler, epoch: int) -> np.ndarray:
    """First token of each window of an epoch, in order of training."""
    random = np.random.Generator(np.random.Philox(key=[order.seed, epoch]))
    return random.permutation(order.starts(random))


def gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows and what follows them: int64 of shape (len(starts), length + 1)."""
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
