"""The text that tokens stand for, read in blocks or anywhere, without holding it in memory."""

from collections.abc import Iterator, Sequence

import numpy as np

BLOCK_TOKENS = 1 << 14
"""Few, so that what is computed of a block fits into the processor's cache."""


class TokenText:
    """The bytes of an array of token ids (N,); `vocabulary` holds the bytes of each token.

    A token that writes nothing, as the one that ends documents, stands for the byte 0xFF.
    """

    def __init__(self, ids: np.ndarray, vocabulary: Sequence[bytes]) -> None:
        self._ids, self._vocabulary = ids, [token or b"\xff" for token in vocabulary]
        lengths = np.array([len(token) for token in self._vocabulary])
        sizes = [
            int(lengths[ids[start : start + BLOCK_TOKENS]].sum())
            for start in range(0, len(ids), BLOCK_TOKENS)
        ]
        self._offsets = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self._offsets[-1])

    def blocks(self) -> Iterator[bytes]:
        """All bytes, in order."""
        return (self._block(number) for number in range(len(self._offsets) - 1))

    def read(self, start: int, size: int) -> bytes:
        """At most `size` bytes from an offset on."""
        first = int(np.searchsorted(self._offsets, start, side="right")) - 1
        until = int(np.searchsorted(self._offsets, start + size))
        until = min(until, len(self._offsets) - 1)
        found = b"".join(self._block(number) for number in range(first, until))
        start -= int(self._offsets[first])
        return found[start : start + size]

    def _block(self, number: int) -> bytes:
        start = number * BLOCK_TOKENS
        ids = self._ids[start : start + BLOCK_TOKENS].tolist()
        return b"".join(map(self._vocabulary.__getitem__, ids))
