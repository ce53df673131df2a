"""The windows of tokens of each training batch: their order, and reading them.

A window is `context` input tokens and one more: the targets are shifted by one.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class WindowSampler:
    """The windows of each batch: a pure function of the seed and the number of the batch.

    Every epoch covers the whole split once, in a new random order and cut into windows at a new
    random offset. Every batch is full: it may hold the end of one epoch and the start of the next.
    """

    tokens: int
    """Tokens in the split."""
    context: int
    batch: int
    """Windows in a batch."""
    seed: int

    @property
    def length(self) -> int:
        """Input tokens in a window: `context`, or fewer if the split is shorter."""
        return min(self.context, self.tokens - 1)

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch: one more than fit, because of the random offset."""
        return -(-(self.tokens - 2) // self.length) + 1

    def num_batches(self, epochs: int) -> int:
        """Batches that `epochs` epochs take."""
        return -(-epochs * self.per_epoch // self.batch)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """Offset of the first token of each window of an epoch, in order of the text."""
        offset = random.integers(1, self.length, endpoint=True)
        starts: np.ndarray = offset + self.length * np.arange(-1, self.per_epoch - 1)
        # The first and last window extend beyond the split; they are moved inside.
        return starts.clip(0, self.tokens - 1 - self.length)

    def batch_starts(self, number: int) -> np.ndarray:
        """Offset of the first token of each window of a batch (counted from 0): (batch,)."""
        first = number * self.batch
        parts = []
        while (wanted := (number + 1) * self.batch - first) > 0:
            epoch, skipped = divmod(first, self.per_epoch)
            parts.append(epoch_starts(self, epoch)[skipped : skipped + wanted])
            first += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class PackedRowSampler(WindowSampler):
    """The same for packed records: consecutive rows of `context` + 1 tokens, never cut."""

    @property
    def per_epoch(self) -> int:
        """Rows in an epoch."""
        return self.tokens // (self.context + 1)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """Offset of the first token of each row."""
        return (self.context + 1) * np.arange(self.per_epoch)


@dataclass(frozen=True, eq=False)  # rows have no hash, which `epoch_starts` needs
class DocumentRowSampler(WindowSampler):
    """The same for documents: the number of each row of a batch instead of its offset."""

    rows: np.ndarray
    """See `document_rows`."""

    @property
    def per_epoch(self) -> int:
        """Rows in an epoch."""
        return len(self.rows)

    @property
    def length(self) -> int:
        """Input tokens of the longest row."""
        return int((self.rows[:, 2] - self.rows[:, 0]).max())

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """The number of each row."""
        return np.arange(self.per_epoch)


@lru_cache(maxsize=2)
def epoch_starts(sampler: WindowSampler, epoch: int) -> np.ndarray:
    """Offset of the first token of each window of an epoch, in order of training."""
    random = np.random.Generator(np.random.Philox(key=[sampler.seed, epoch]))
    return random.permutation(sampler.starts(random))


def gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows of `length` tokens and the next token: int64 (len(starts), length + 1)."""
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)
