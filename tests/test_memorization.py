"""What is copied from the training text is counted, and nothing else."""

import json
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.lm.data.token_text import TokenText
from stages.lm.evaluation import memorization
from stages.lm.evaluation.memorization import (
    SPAN_BYTES,
    copied_bytes,
    copied_shares,
    verbatim_spans,
)

SMALL_ALPHABET = st.lists(st.sampled_from(b"ab\0"), max_size=60).map(bytes)


def brute_force(text, training, span):
    covered = set()
    for start in range(len(text) - span + 1):
        if text[start : start + span] in training:
            covered |= set(range(start, start + span))
    return len(covered)


def token_text(data):
    return TokenText(np.frombuffer(data, np.uint8), [bytes([byte]) for byte in range(256)])


def in_blocks(data, size):
    return [data[first : first + size] for first in range(0, len(data), size)]


@given(
    texts=st.lists(SMALL_ALPHABET, max_size=4),
    training=SMALL_ALPHABET,
    span=st.integers(1, 9),
    size=st.integers(1, 20),
)
def test_any_texts_agree_with_a_plain_search(texts, training, span, size):
    expected = [brute_force(text, training, span) for text in texts]
    assert copied_bytes(texts, in_blocks(training, size), span) == expected


@pytest.mark.parametrize("seed", range(200))
def test_marked_copies_agree_with_a_plain_search(seed):
    draw = random.Random(seed)
    words = [bytes(draw.choices(b"ab\0", k=draw.randint(1, 9))) for _ in range(8)]
    training, text = (b"".join(draw.choices(words, k=draw.randint(0, 60))) for _ in range(2))
    span = draw.randint(1, 12)
    found = verbatim_spans(text, token_text(training), span)
    covered = set()
    for copy in found:
        part = text[copy.start : copy.start + copy.length]
        assert len(part) == copy.length >= span
        assert training[copy.offset : copy.offset + copy.length] == part
        covered |= set(range(copy.start, copy.start + copy.length))
    assert len(covered) == brute_force(text, training, span)
    ends = [copy.start + copy.length for copy in found]
    assert ends == sorted(set(ends))


@pytest.mark.parametrize("seed", range(6))
def test_long_texts_agree_with_a_plain_search(seed):
    draw = random.Random(seed)
    words = [bytes(draw.choices(b"abcde ", k=7)) for _ in range(20)]
    training = b"".join(draw.choices(words, k=1500))
    texts = [b"".join(draw.choices(words, k=length)) for length in (300, 0, 3, 90)]
    # A copy from the training text that begins anywhere, also right before the end of a block.
    place = draw.randrange(len(training) - 100)
    texts[3] += training[place : place + 100]
    expected = [brute_force(text, training, SPAN_BYTES) for text in texts]
    assert expected[3] >= 100 and expected[0] < len(texts[0])
    for size in (33, 1000, len(training)):
        assert copied_bytes(texts, in_blocks(training, size)) == expected


@pytest.mark.parametrize("place", range(25, 40))
def test_a_copy_across_the_border_of_two_blocks_counts(place):
    noise = random.Random(0).randbytes(64)
    copy = noise[place - SPAN_BYTES // 2 : place + SPAN_BYTES // 2]
    text = b"~" * 10 + copy + b"~" * 10
    assert copied_bytes([text], [noise[:place], noise[place:]]) == [SPAN_BYTES]


def test_a_text_that_is_copied_whole_counts_whole():
    text = random.Random(0).randbytes(1000)
    assert copied_bytes([text, text[10:500]], [b"before", text, b"after"]) == [1000, 490]


def test_one_byte_less_than_the_span_is_no_copy():
    noise = random.Random(0).randbytes(SPAN_BYTES)
    assert copied_bytes([noise[:-1]], [noise]) == [0]
    assert copied_bytes([noise[:-1] + b"~~"], [noise]) == [0]
    assert copied_bytes([noise], [noise[:-1]]) == [0]
    assert copied_bytes([noise], [noise]) == [SPAN_BYTES]


def test_a_span_never_reaches_over_two_texts():
    noise = random.Random(0).randbytes(2 * SPAN_BYTES - 2)
    halves = [noise[: SPAN_BYTES - 1], noise[SPAN_BYTES - 1 :]]
    assert copied_bytes(halves, [noise]) == [0, 0]


def test_nothing_is_copied_from_or_into_nothing():
    noise = random.Random(0).randbytes(100)
    assert copied_bytes([], [noise]) == []
    assert copied_bytes([b"", noise], []) == [0, 0]


@pytest.mark.parametrize("hashed", ["all alike", "last byte"])
def test_windows_with_one_hash_are_told_apart(monkeypatch, hashed):
    def poor_hashes(data, span):
        ends = data[span - 1 :].astype(np.uint64)
        return ends * 0 if hashed == "all alike" else ends << np.uint64(56)

    draw = random.Random(0)
    text, training = (bytes(draw.choices(b"ab", k=150)) for _ in range(2))
    expected = [brute_force(text, training, 9), brute_force(training, text, 9)]
    assert 0 < expected[0] < 150
    monkeypatch.setattr(memorization, "window_hashes", poor_hashes)
    for size in (10, 40, 150):
        assert copied_bytes([text], in_blocks(training, size), 9) == expected[:1]
        assert copied_bytes([training], in_blocks(text, size), 9) == expected[1:]
    assert copied_bytes([b"x" * 40], [b"y" * 40]) == [0]
    # What is found over and over does not stop the search for what comes at the end.
    first, last = draw.randbytes(40), draw.randbytes(40)
    for repeated in ([first * 50, last], [first] * 50 + [last]):
        assert copied_bytes([first, last], repeated) == [40, 40]


def test_different_windows_have_different_hashes():
    # Few letters, and parts in another order, which a poor hash confuses.
    windows = {bytes(random.Random(seed).choices(b"ab", k=32)) for seed in range(2000)}
    for part in (1, 2, 4, 8, 16):
        windows |= {window[part:] + window[:part] for window in windows}
    joined = np.frombuffer(b"".join(windows), np.uint8)
    hashes = memorization.window_hashes(joined, 32)[::32]
    assert len(set(hashes.tolist())) == len(windows)


def test_the_training_text_is_gone_through_once_in_bounded_memory():
    text = random.Random(0).randbytes(2000)
    taken = []

    def training(blocks):
        draw = random.Random(1)
        for number in range(blocks):
            taken.append(number)
            yield draw.randbytes(1 << 14)

    def peak(blocks):
        tracemalloc.start()
        assert copied_bytes([text], training(blocks)) == [0]
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    few = peak(4)
    assert peak(100) < 1.1 * few
    assert taken == [*range(4), *range(100)]


def test_the_figure_compares_samples_and_held_out_text_with_the_training_text():
    draw = random.Random(0)
    training, fresh = draw.randbytes(5000), draw.randbytes(300)
    samples = [training[70:120], fresh, fresh[:50]]
    # Of the 400 held-out bytes 100 are in the training text too.
    shares = copied_shares([training], fresh + training[:100], samples)
    assert shares == {
        "span_bytes": SPAN_BYTES,
        "sampled_bytes": 400,
        "copied_share": 0.125,
        "held_out_copied_share": 0.25,
    }
    assert copied_shares([training], fresh, [])["copied_share"] == 0
    json.dumps(shares, allow_nan=False)
