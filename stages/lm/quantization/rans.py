"""Lossless entropy coding of byte arrays with numpy, close to the entropy of each array.

Interleaved rANS (Duda 2013, arXiv 1311.2540; Giesen 2014, arXiv 1402.3392): a number of coders, the
lanes, take turns with the symbols, so that one numpy operation decodes a symbol in every lane. Each
array has its own frequency table; the lanes' states carry over from one array to the next. A symbol
is a byte of an array. `inference/rans.h` draws the stream. Knows nothing about models.
"""

from collections.abc import Callable

import numpy as np

TABLE_BITS = 14
TABLE = 1 << TABLE_BITS
"""Slots of a frequency table. A symbol owns consecutive slots, about in proportion to its
frequency; their number is its count."""
LOW = 1 << 16
"""A lane's state stays in [2^16, 2^32): the decoder appends a 16-bit word to one that falls
below."""
MAX_COUNT = TABLE - TABLE // 16
"""Largest count: every symbol costs at least -log2(15/16) = 0.09 bits, which bounds what a forged
stream expands to."""
MAX_SYMBOLS_PER_BYTE = 86
"""The bound that follows: 8 bits / 0.0931 bits, rounded up."""

Encode = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""An encoder (symbols, sizes, tables, states) -> words, uint16, in the order of decoding.

It updates the lanes' `states`, uint32. The rest is as in `Decode`."""
Decode = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]
"""A decoder (symbols, sizes, tables, states, words) -> number of words taken.

It fills `symbols`, uint8, with arrays of `sizes`, int64, one after the other. Row i of `tables`
(arrays, 256), uint32, holds the counts of array i. It updates the lanes' `states`, uint32, and
takes `words`, uint16, in order. If these run out, it stops and returns their number plus one."""

CODES_PER_RUN = 1 << 15
MAX_RUNS = 8
"""A matrix is cut into runs of about `CODES_PER_RUN` codes, but at most `MAX_RUNS`, each with its
own table."""


def lane_count(symbols: int) -> int:
    """Lanes for a stream of `symbols` symbols, a power of two from 4 to 4096.

    More lanes need fewer iterations of the decoding loop, but each takes 4 bytes of the stream.
    """
    return 1 << min(max((symbols // 6_000).bit_length(), 2), 12)


def order_by_scale(scales: np.ndarray) -> np.ndarray:
    """The indices that sort float16 `scales` by absolute value, ascending."""
    # The bits of positive float16 numbers, read as integers, have the same order and sort faster.
    return np.argsort(np.abs(scales).view(np.uint16), kind="stable")


def run_lengths(scales: int, codes: int) -> list[int]:
    """The number of scales in each run of a matrix with `scales` scales and `codes` codes.

    Runs divide the sorted scales evenly. Codes under similar scales have similar distributions, so
    a table for each run makes them shorter. No order is stored: the reader has the scales.
    """
    runs = min(MAX_RUNS, scales, 1 + codes // CODES_PER_RUN)
    length, longer = divmod(scales, runs)
    return [length + 1] * longer + [length] * (runs - longer)


def runs_by_scale(scales: np.ndarray, codes: int) -> list[np.ndarray]:
    """The indices of float16 `scales` in each run, the run with the smallest scales first."""
    ends = np.cumsum(run_lengths(len(scales), codes))
    return np.split(order_by_scale(scales), ends[:-1])


def encode_with_numpy(
    arrays: np.ndarray, sizes: np.ndarray, tables: np.ndarray, states: np.ndarray
) -> np.ndarray:
    """The `Encode` that runs everywhere; the engine's is faster."""
    wide = states.astype(np.uint64)
    words: list[np.ndarray] = []
    split = np.split(arrays, np.cumsum(sizes)[:-1])
    # rANS is last in, first out: encoding backwards lets the decoder go forwards.
    for array, table in zip(reversed(split), tables[::-1], strict=True):
        counts, first_slots = table.astype(np.uint64), _first_slots(table).astype(np.uint64)
        for start in reversed(range(0, len(array), len(states))):
            symbols = array[start : start + len(states)]
            count, state = counts[symbols], wide[: len(symbols)]
            full = state >= count << np.uint64(32 - TABLE_BITS)
            words.append(state[full].astype(np.uint16))
            state[full] >>= np.uint64(16)
            quotient, rest = np.divmod(state, count)
            slot = first_slots[symbols] + rest
            wide[: len(symbols)] = (quotient << np.uint64(TABLE_BITS)) + slot
    states[:] = wide
    return np.concatenate(words[::-1])


def pack(arrays: list[np.ndarray], encode: Encode = encode_with_numpy) -> np.ndarray:
    """Encode one-dimensional, non-empty uint8 `arrays` as one stream of bytes, uint8.

    It holds the tables, the state of each lane, and the 16-bit words in the order of decoding.
    """
    sizes = np.array([len(array) for array in arrays], np.int64)
    lanes = lane_count(int(sizes.sum()))
    tables = np.stack([_table(array) for array in arrays]).astype(np.uint32)
    states = np.full(lanes, LOW, np.uint32)
    words = encode(np.concatenate(arrays), sizes, tables, states)
    parts = [*map(_table_bytes, tables), states.astype("<u4"), words.astype("<u2")]
    return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in parts])


def decode_with_numpy(
    arrays: np.ndarray,
    sizes: np.ndarray,
    tables: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """The `Decode` that runs everywhere; the engine's is faster."""
    next_word = 0
    for array, table in zip(np.split(arrays, np.cumsum(sizes)[:-1]), tables, strict=True):
        symbol_of = np.repeat(np.arange(256, dtype=np.uint8), table)
        rest_of = np.arange(TABLE, dtype=np.uint32) - _first_slots(table)[symbol_of]
        step_of = table[symbol_of] << 16 | rest_of  # by slot; one look-up gives count and rest
        for start in range(0, len(array), len(states)):
            part = array[start : start + len(states)]
            state = states[: len(part)]
            slot = state & np.uint32(TABLE - 1)
            symbol_of.take(slot, out=part, mode="wrap")
            step = step_of.take(slot)
            state >>= np.uint32(TABLE_BITS)
            state *= step >> np.uint32(16)
            state += step & np.uint32(0xFFFF)
            empty = np.flatnonzero(state < LOW)
            taken = words[next_word : next_word + len(empty)]
            if len(taken) < len(empty):
                return len(words) + 1
            state[empty] = state[empty] << np.uint32(16) | taken
            next_word += len(empty)
    return next_word


def unpack(stream: np.ndarray, sizes: list[int], decode: Decode = decode_with_numpy) -> np.ndarray:
    """The arrays of `sizes` that `pack` encoded, concatenated (sum of sizes,), uint8.

    Raises:
        ValueError: the stream does not hold them. Even for a forged stream, memory and time stay
            proportional to its length.
    """
    total = sum(sizes)
    lanes = lane_count(total)
    if total > MAX_SYMBOLS_PER_BYTE * len(stream):
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
    """The count of each of the 256 symbols: `TABLE` times its frequency, and 1 or more if used."""
    occurrences = np.bincount(array, minlength=256)
    used = occurrences > 0
    counts = occurrences * (TABLE - int(used.sum())) // len(array) + used
    top = int(counts.argmax())
    counts[top] += TABLE - int(counts.sum())
    if counts[top] > MAX_COUNT:  # a neighbour gets the excess, whether it occurs or not
        counts[top - 1 if top else 1] += counts[top] - MAX_COUNT
        counts[top] = MAX_COUNT
    return counts


def _first_slots(table: np.ndarray) -> np.ndarray:
    """The first slot of each symbol."""
    first_slots: np.ndarray = np.cumsum(table, dtype=table.dtype) - table
    return first_slots


def _table_bytes(table: np.ndarray) -> np.ndarray:
    """The first and the last symbol in use, 8 bits each, then the 16-bit counts from one to the
    other.
    """
    used = np.flatnonzero(table)
    counts = table[used[0] : used[-1] + 1].astype("<u2").view(np.uint8)
    return np.concatenate([used[[0, -1]].astype(np.uint8), counts])


def _read_table(stream: np.ndarray, start: int, table: np.ndarray) -> int:
    """Read what `_table_bytes` wrote at offset `start` into a table of zeros; the offset after it.

    Raises:
        ValueError: the stream ends too early, or the counts are those of no table.
    """
    if start + 2 <= len(stream):
        first, end = int(stream[start]), int(stream[start + 1]) + 1
        counts = stream[start + 2 : start + 2 + 2 * max(0, end - first)]
        if len(counts) == 2 * (end - first):
            table[first:end] = counts.copy().view("<u2")
    if table.sum() != TABLE or table.max() > MAX_COUNT:
        raise ValueError("a table of frequencies is damaged")
    return start + 2 + len(counts)
