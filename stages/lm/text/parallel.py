"""Encoding with all cores: the same ids in the same order as with one, in bounded memory.

Threads, not processes: tiktoken does not hold Python's lock while it encodes, and threads start at
once, share the vocabulary and end with the program.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from ..data.dataset import token_dtype
from .interface import Tokenizer

WORKERS = min(os.cpu_count() or 1, 8)
"""About an eighth of the work, making Python's numbers of ids, is done by one thread at a time."""
BATCH_BYTES = 1 << 20
"""A worker is given chunks of about so many bytes at once: records are short."""


def encode_chunks(
    tokenizer: Tokenizer, chunks: Iterable[bytes], workers: int = WORKERS
) -> Iterator[tuple[np.ndarray, int]]:
    """The ids of successive chunks, one after the other, and how many bytes they stand for.

    At most two batches for each worker are held in memory.
    """

    dtype = token_dtype(tokenizer.vocab_size)

    def encode(batch: list[bytes], first: bool) -> tuple[np.ndarray, int]:
        lists = (
            tokenizer.encode(chunk, follows=not first or number > 0)
            for number, chunk in enumerate(batch)
        )
        arrays = [np.fromiter(ids, dtype, len(ids)) for ids in lists]
        return np.concatenate(arrays), sum(map(len, batch))

    pending: deque[Future[tuple[np.ndarray, int]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for number, batch in enumerate(batches(chunks)):
            pending.append(pool.submit(encode, batch, number == 0))
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def batches(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Successive chunks, together at least `BATCH_BYTES` long each time but the last."""
    batch, size = [], 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
