"""What is packed comes back as it was, in about as many bits as it holds; nothing else does."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lm.inference import native
from stages.lm.quantization import rans
from stages.lm.quantization.rans import (
    MAX_SYMBOLS_PER_BYTE,
    TABLE,
    decode_with_numpy,
    lane_count,
    pack,
)

ARRAYS = st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=5)


def from_bytes(parts):
    return [np.frombuffer(part, np.uint8) for part in parts]


def sizes(arrays):
    return [len(array) for array in arrays]


def unpack(stream, sizes, decode=decode_with_numpy):
    """The arrays, each for itself."""
    whole = rans.unpack(stream, sizes, decode)
    return np.split(whole, np.cumsum(sizes)[:-1])


def gaussian(count, deviation, seed=0):
    codes = np.random.default_rng(seed).normal(0, deviation, count).round().clip(-8, 7)
    return codes.astype(np.int8).view(np.uint8) ^ 128


def entropy_bytes(array):
    shares = np.bincount(array) / len(array)
    shares = shares[shares > 0]
    return -(shares * np.log2(shares)).sum() * len(array) / 8


@given(ARRAYS)
def test_the_engine_encodes_to_the_same_stream(parts):
    arrays = from_bytes(parts)
    assert np.array_equal(pack(arrays, native.encode), pack(arrays))


@given(ARRAYS)
def test_any_arrays_come_back(parts):
    arrays = from_bytes(parts)
    unpacked = unpack(pack(arrays), sizes(arrays))
    assert [array.tobytes() for array in unpacked] == parts


@pytest.mark.parametrize("deviation", [0.7, 1.5, 3.0])
def test_a_stream_is_as_short_as_the_entropy_of_its_arrays(deviation):
    arrays = [gaussian(200_000, deviation * scale, seed) for seed, scale in enumerate((1, 0.5, 2))]
    stream = pack(arrays)
    assert len(stream) < 1.01 * sum(map(entropy_bytes, arrays)) + 4 * lane_count(600_000)
    for array, unpacked in zip(arrays, unpack(stream, sizes(arrays)), strict=True):
        assert np.array_equal(array, unpacked)


@pytest.mark.parametrize("symbol", [0, 1, 128, 255])
def test_one_symbol_over_and_over_is_short_but_not_free(symbol):
    array = np.full(50_000, symbol, np.uint8)
    stream = pack([array])
    assert len(array) / MAX_SYMBOLS_PER_BYTE <= len(stream) < 800
    assert np.array_equal(unpack(stream, [len(array)])[0], array)


def test_the_rarest_of_many_symbols_keeps_its_place():
    rare = np.arange(256, dtype=np.uint8)
    for common in (rare[:128], rare[:1], rare):
        array = np.concatenate([np.tile(common, 40_000 // len(common)), rare])
        assert np.array_equal(unpack(pack([array]), [len(array)])[0], array)


def test_the_same_arrays_are_the_same_stream():
    arrays = [gaussian(5_000, 1.0), gaussian(70, 2.0)]
    assert np.array_equal(pack(arrays), pack([array.copy() for array in arrays]))


@given(
    parts=st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=3),
    cut=st.floats(0, 1, exclude_max=True),
)
def test_every_truncation_is_noticed(parts, cut):
    stream = pack(from_bytes(parts))
    with pytest.raises(ValueError, match=r"stream|table|codes"):
        unpack(stream[: int(cut * len(stream))], [len(part) for part in parts])


def test_a_flipped_bit_is_noticed_or_gives_arrays_of_the_same_sizes():
    arrays = [gaussian(400, 1.0), gaussian(30, 2.0, 1)]
    stream = pack(arrays)
    noticed = 0
    for bit in range(8 * len(stream)):
        damaged = stream.copy()
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            unpacked = unpack(damaged, sizes(arrays))
        except ValueError:
            noticed += 1
        else:
            assert sizes(unpacked) == sizes(arrays)
    assert noticed > 0.9 * 8 * len(stream)


@given(stream=st.binary(max_size=2_000), wanted=st.lists(st.integers(1, 2**62), max_size=4))
def test_noise_is_refused_whatever_it_is_said_to_hold(stream, wanted):
    with pytest.raises(ValueError, match=r"stream|table|codes|left over"):
        unpack(np.frombuffer(stream, np.uint8), [*wanted, 2**40])


def test_a_size_beyond_any_memory_is_refused_before_memory_is_taken():
    lanes = np.zeros(4 * lane_count(2**50), np.uint8)  # so that no part of the stream is missing
    stream = np.concatenate([pack([gaussian(50, 1.0)]), lanes])
    with pytest.raises(ValueError, match=f"{2**50} codes cannot lie in {len(stream)} bytes"):
        unpack(stream, [2**50])


def test_a_table_that_lets_a_symbol_cost_nothing_is_refused():
    stream = pack([np.zeros(50, np.uint8)])
    stream[2:6] = np.array([TABLE, 0], "<u2").view(np.uint8)
    with pytest.raises(ValueError, match="table"):
        unpack(stream, [50])


def test_what_follows_the_codes_is_refused():
    array = gaussian(1_000, 1.0)
    longer = np.concatenate([pack([array]), np.zeros(2, np.uint8)])
    with pytest.raises(ValueError, match="does not end where its codes do"):
        unpack(longer, [len(array)])


@pytest.mark.parametrize("count", [5, 200_000, 200_001])
def test_the_engine_decodes_what_numpy_does(count):
    if native.library() is None:
        pytest.skip("there is no C compiler")
    random = np.random.default_rng(count)
    arrays = [(random.normal(0, spread, count) + 128).astype(np.uint8) for spread in (0, 2, 30)]
    stream, wanted = pack(arrays), [len(array) for array in arrays]
    for array, unpacked in zip(arrays, unpack(stream, wanted, native.decode), strict=True):
        assert np.array_equal(array, unpacked)
    with pytest.raises(ValueError, match=r"early|missing"):
        unpack(stream[:-2], wanted, native.decode)


@given(ARRAYS)
def test_the_engine_decodes_any_arrays(parts):
    arrays = from_bytes(parts)
    unpacked = unpack(pack(arrays), sizes(arrays), native.decode)
    assert [array.tobytes() for array in unpacked] == parts
