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
from .records import TEXT_END

WORKERS = min(os.cpu_count() or 1, 8)
"""About an eighth of the work, making Python's numbers of ids, is done by one thread at a time."""
LONGEST = 16 << 20
"""Bytes to which chunks are joined that tokens would span."""
BATCH_BYTES = 1 << 20
"""A worker is given chunks of about so many bytes at once: records are short."""


def encode_chunks(
    tokenizer: Tokenizer, chunks: Iterable[bytes], workers: int = WORKERS
) -> Iterator[tuple[np.ndarray, int]]:
    """The ids of successive chunks, one after the other, and how many bytes they stand for.

    At most two batches for each worker are held in memory.
    """
    pieces = (("", chunk) for chunk in chunks)
    return ((ids, size) for _, ids, size in encode_pieces(tokenizer, pieces, workers))


def encode_pieces(
    tokenizer: Tokenizer,
    pieces: Iterable[tuple[str, bytes]],
    workers: int = WORKERS,
    end: int | None = None,
) -> Iterator[tuple[str, np.ndarray, int]]:
    """The same for chunks that belong to several sequences, each named before it.

    With `end`, a sequence has many texts: `TEXT_END` at the end of a chunk ends one, and is `end`.
    """
    dtype = token_dtype(tokenizer.vocab_size)

    def encode(name: str, batch: list[bytes], follows: bool) -> tuple[str, np.ndarray, int]:
        lists = []
        for chunk in batch:
            ended = end is not None and chunk.endswith(TEXT_END)
            lists.append(tokenizer.encode(chunk[:-1] if ended else chunk, follows))
            lists += [[end]] if ended and end is not None else []
            follows = not ended
        arrays = [np.fromiter(ids, dtype, len(ids)) for ids in lists]
        return name, np.concatenate(arrays), sum(map(len, batch))

    pending: deque[Future[tuple[str, np.ndarray, int]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        follows: dict[str, bool] = {}
        for name, batch in named_batches(without_spans(tokenizer, pieces)):
            pending.append(pool.submit(encode, name, batch, follows.get(name, False)))
            follows[name] = end is None or not batch[-1].endswith(TEXT_END)
            if len(pending) == 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def without_spans(
    tokenizer: Tokenizer, pieces: Iterable[tuple[str, bytes]]
) -> Iterator[tuple[str, bytes]]:
    """The same pieces, joined where a token would span two of one sequence."""
    waiting: dict[str, bytes] = {}
    for name, chunk in pieces:
        before = waiting.pop(name, b"")
        whole = before.endswith(TEXT_END) or len(before) > LONGEST
        if before and (whole or tokenizer.may_be_cut(before, chunk)):
            yield name, before
        else:
            chunk = before + chunk
        waiting[name] = chunk
    yield from waiting.items()


def batches(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Successive chunks, together at least `BATCH_BYTES` long each time but the last."""
    return (batch for _, batch in named_batches(("", chunk) for chunk in chunks))


def named_batches(pieces: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """The same for chunks of several sequences, each named before it; a batch is of one of them."""
    waiting: dict[str, list[bytes]] = {}
    sizes: dict[str, int] = {}
    for name, chunk in pieces:
        waiting.setdefault(name, []).append(chunk)
        sizes[name] = sizes.get(name, 0) + len(chunk)
        if sizes[name] >= BATCH_BYTES:
            yield name, waiting.pop(name)
            sizes[name] = 0
    yield from waiting.items()
