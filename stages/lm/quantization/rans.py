"""Bytes in as few bits as their frequencies allow: a range coder in numpy, without any loss.

Interleaved rANS (Duda 2013, arXiv 1311.2540; Giesen 2014, arXiv 1402.3392): many lanes go through
the symbols side by side, so that every step of the Python loop decodes as many symbols as there
are lanes. Each array has a frequency table of its own; the lanes go on from one array to the next.
Knows nothing about models.
"""

from collections.abc import Callable

import numpy as np

TABLE_BITS = 14
TABLE = 1 << TABLE_BITS
LOW = 1 << 16
"""A lane's state lies in [2^16, 2^32); what is below takes in another 16 bits."""
MOST = TABLE - TABLE // 16
"""No symbol counts for more, so that none costs nothing: see `MOST_PER_BYTE`."""
MOST_PER_BYTE = 86
"""Symbols in a byte of any stream: -log2(15/16) bits a symbol at least."""

Decode = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]
"""Fills a uint8 array, made of arrays of certain sizes, int64, one after the other. Each has a row
of the tables, uint32: the places of every symbol. From the lanes' states, uint32, and the words,
uint16; returns how many words it took, or one more than there are where these are too few."""

RUN = 1 << 15
MOST_RUNS = 8
"""A matrix has a table for so many codes of alike scales, but no more tables than these."""


def lane_count(symbols: int) -> int:
    """Lanes for so many symbols: 4 bytes each in the stream, and a step of the loop for all."""
    return 1 << min(max((symbols // 6_000).bit_length(), 2), 12)


def order_by_scale(scales: np.ndarray) -> np.ndarray:
    """The places of float16 `scales` from the smallest to the largest."""
    # Positive halves have the order of their bits, and integers sort many times faster.
    return np.argsort(np.abs(scales).view(np.uint16), kind="stable")


def run_lengths(scales: int, codes: int) -> list[int]:
    """How many scales lie in each of the few runs that `scales` in order are cut into.

    Codes of alike scales are spread alike, so that a table for each run makes them shorter; what
    reads them has the scales already. `codes` is how many there are under all the scales.
    """
    parts = min(MOST_RUNS, scales, 1 + codes // RUN)
    whole, rest = divmod(scales, parts)
    return [whole + 1] * rest + [whole] * (parts - rest)


def runs_by_scale(scales: np.ndarray, codes: int) -> list[np.ndarray]:
    """The places of float16 `scales` in each run."""
    ends = np.cumsum(run_lengths(len(scales), codes))
    return np.split(order_by_scale(scales), ends[:-1])


def pack(arrays: list[np.ndarray]) -> np.ndarray:
    """One stream of bytes that holds uint8 `arrays` of one dimension, none of them empty.

    The tables, then each lane's state, then the words of 16 bits in the order of decoding.
    """
    lanes = lane_count(sum(len(array) for array in arrays))
    tables = [_table(array) for array in arrays]
    head = [_table_bytes(table) for table in tables]
    states = np.full(lanes, LOW, np.uint64)
    words: list[np.ndarray] = []
    for array, table in zip(reversed(arrays), reversed(tables), strict=True):
        counts, before = table.astype(np.uint64), _before(table).astype(np.uint64)
        for start in reversed(range(0, len(array), lanes)):
            symbols = array[start : start + lanes]
            count, state = counts[symbols], states[: len(symbols)]
            full = state >= count << np.uint64(32 - TABLE_BITS)
            words.append(state[full].astype("<u2"))
            state[full] >>= np.uint64(16)
            turns, rest = np.divmod(state, count)
            states[: len(symbols)] = (turns << np.uint64(TABLE_BITS)) + rest + before[symbols]
    parts = [*head, states.astype("<u4"), *reversed(words)]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])


def decode_with_numpy(
    arrays: np.ndarray,
    sizes: np.ndarray,
    tables: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """A `Decode`."""
    place = 0
    for array, table in zip(np.split(arrays, np.cumsum(sizes)[:-1]), tables, strict=True):
        symbol_at = np.repeat(np.arange(256, dtype=np.uint8), table)
        rest_at = np.arange(TABLE, dtype=np.uint32) - _before(table)[symbol_at]
        step_at = table[symbol_at] << 16 | rest_at
        for start in range(0, len(array), len(states)):
            part = array[start : start + len(states)]
            state = states[: len(part)]
            slot = state & np.uint32(TABLE - 1)
            symbol_at.take(slot, out=part, mode="wrap")
            step = step_at.take(slot)
            state >>= np.uint32(TABLE_BITS)
            state *= step >> np.uint32(16)
            state += step & np.uint32(0xFFFF)
            empty = np.flatnonzero(state < LOW)
            taken = words[place : place + len(empty)]
            if len(taken) < len(empty):
                return len(words) + 1
            state[empty] = state[empty] << np.uint32(16) | taken
            place += len(empty)
    return place


def unpack(stream: np.ndarray, sizes: list[int], decode: Decode = decode_with_numpy) -> np.ndarray:
    """The arrays that `pack` was given, of the `sizes` they had, one after the other.

    Raises:
        ValueError: the stream does not hold them. Memory and time are bounded by its own length.
    """
    total = sum(sizes)
    lanes = lane_count(total)
    if total > MOST_PER_BYTE * len(stream):
        raise ValueError(f"{total} codes cannot lie in {len(stream)} bytes")
    tables, start = np.zeros((len(sizes), 256), np.uint32), 0
    for table in tables:
        start = _read_table(stream, start, table)
    head, tail = stream[start : start + 4 * lanes], stream[start + 4 * lanes :]
    if len(head) != 4 * lanes or len(tail) % 2:
        raise ValueError("a part of the stream is missing")
    states, words = head.copy().view("<u4"), tail.view("<u2")
    arrays = np.empty(total, np.uint8)
    taken = decode(arrays, np.array(sizes, np.int64), tables, states, words)
    if taken > len(words):
        raise ValueError("the stream ends too early")
    if taken < len(words) or (states != LOW).any():
        raise ValueError("the stream does not end where its codes do")
    return arrays


def _table(array: np.ndarray) -> np.ndarray:
    """How many of `TABLE` places each of the 256 symbols has: about its share, at least one."""
    counts = np.bincount(array, minlength=256)
    used = counts > 0
    table = counts * (TABLE - int(used.sum())) // len(array) + used
    top = int(table.argmax())
    table[top] += TABLE - int(table.sum())
    if table[top] > MOST:
        table[top - 1 if top else 1] += table[top] - MOST
        table[top] = MOST
    return table


def _before(table: np.ndarray) -> np.ndarray:
    """The first place of each symbol."""
    before: np.ndarray = np.cumsum(table, dtype=table.dtype) - table
    return before


def _table_bytes(table: np.ndarray) -> np.ndarray:
    """The first and the last symbol in use, and the 16-bit places of all between them."""
    used = np.flatnonzero(table)
    places = table[used[0] : used[-1] + 1].astype("<u2").view(np.uint8)
    return np.concatenate([used[[0, -1]].astype(np.uint8), places])


def _read_table(stream: np.ndarray, start: int, table: np.ndarray) -> int:
    """Fill a table of zeros with what `_table_bytes` wrote at a place; the place after it."""
    if start + 2 <= len(stream):
        first, end = int(stream[start]), int(stream[start + 1]) + 1
        places = stream[start + 2 : start + 2 + 2 * max(0, end - first)]
        if len(places) == 2 * (end - first):
            table[first:end] = places.copy().view("<u2")
    if table.sum() != TABLE or table.max() > MOST:
        raise ValueError("a table of frequencies is damaged")
    return start + 2 + len(places)
