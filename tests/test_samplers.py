"""Each sampler does what transformers' own does; a text stops where its stop string begins."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from stages.lm.inference.generation import SamplingSettings, sampled_logits
from stages.lm.inference.samplers import (
    StopStrings,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    scale_temperature,
)


def rows(count, size=200):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=torch.double)


def marks(ids, size=200):
    return torch.zeros(size, dtype=torch.bool).index_fill(0, torch.tensor(ids), True)


@pytest.mark.parametrize("k", [1, 2, 17, 199, 200])
def test_top_k_keeps_what_transformers_keeps(k):
    for logits in rows(20):
        expected = TopKLogitsWarper(top_k=k)(None, logits.unsqueeze(0))[0]
        assert torch.equal(keep_top_k(logits, k), expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.95, 0.999])
def test_top_p_keeps_what_transformers_keeps(p):
    for scale, logits in itertools.product((0.2, 1, 5), rows(20)):
        expected = TopPLogitsWarper(top_p=p)(None, logits.unsqueeze(0) * scale)[0]
        assert torch.equal(keep_top_p(logits * scale, p), expected)


@pytest.mark.parametrize("k", [0, -1, 200, 1000])
def test_top_k_is_off_at_zero_and_beyond_the_vocabulary(k):
    assert torch.equal(keep_top_k(rows(1)[0], k), rows(1)[0])


@pytest.mark.parametrize("p", [0.01, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("scale", [0.2, 1, 3, 1000])
def test_top_p_keeps_what_transformers_keeps_of_a_large_vocabulary(scale, p):
    logits = rows(1, 50_257)[0] * scale
    expected = TopPLogitsWarper(top_p=p)(None, logits[None])[0]
    assert torch.equal(keep_top_p(logits, p), expected)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.5, 1 - 1e-9])
def test_top_p_of_one_token_or_of_equal_ones(p):
    assert keep_top_p(torch.zeros(1, dtype=torch.double), p).tolist() == [0]
    kept = keep_top_p(torch.zeros(1000, dtype=torch.double), p).isfinite().nonzero()[:, 0]
    assert kept.tolist() == list(range(len(kept))) and abs(len(kept) - max(1, 1000 * p)) <= 1


def test_top_p_is_off_at_one():
    assert torch.equal(keep_top_p(rows(1)[0], 1.0), rows(1)[0])


def test_top_p_keeps_the_fewest_that_reach_the_sum():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.double).log()
    for p, kept in [(0.4, [1]), (0.6, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])]:
        assert keep_top_p(logits, p).isfinite().nonzero().flatten().tolist() == kept


def test_top_p_stops_where_the_sum_is_reached_exactly():
    assert keep_top_p(torch.zeros(4, dtype=torch.double), 0.5).isfinite().sum() == 2


def test_top_p_keeps_at_least_one():
    assert keep_top_p(rows(1)[0], 0.0).isfinite().sum() == 1


def test_ties_with_the_last_of_top_k_stay():
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert keep_top_k(logits, 1).isfinite().tolist() == [False, True, True, False]


@pytest.mark.parametrize("p", [0.001, 0.05, 0.3, 0.99, 1.0])
def test_min_p_keeps_what_transformers_keeps(p):
    for scale, logits in itertools.product((0.2, 1, 5), rows(20)):
        expected = MinPLogitsWarper(min_p=p)(None, logits.unsqueeze(0) * scale)[0]
        assert torch.equal(keep_min_p(logits * scale, p), expected)


def test_min_p_is_off_at_zero_and_keeps_the_likeliest_at_one():
    assert torch.equal(keep_min_p(rows(1)[0], 0.0), rows(1)[0])
    assert keep_min_p(rows(1)[0], 1.0).isfinite().sum() == 1


@pytest.mark.parametrize("penalty", [1.0, 1.2, 5.0])
def test_the_penalty_is_that_of_transformers(penalty):
    ids = [3, 3, 70, 199]
    for logits in rows(20):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), logits[None])[0]
        assert torch.equal(penalise_repetition(logits, marks(ids), penalty), expected)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_the_temperature_is_that_of_transformers(temperature):
    for logits in rows(20):
        expected = TemperatureLogitsWarper(temperature)(None, logits[None])[0].softmax(-1)
        torch.testing.assert_close(scale_temperature(logits, temperature).softmax(-1), expected)


def test_the_whole_chain_is_that_of_transformers():
    ids = [0, 5, 9, 150]
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            TemperatureLogitsWarper(1.4),
            TopKLogitsWarper(60),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.05),
        ]
    )
    settings = SamplingSettings(
        temperature=1.4, top_k=60, top_p=0.9, min_p=0.05, repetition_penalty=1.3
    )
    for logits in rows(50) * 2:
        expected = theirs(torch.tensor([ids]), logits[None])[0].softmax(-1)
        ours = sampled_logits(logits, settings, marks(ids)).softmax(-1)
        torch.testing.assert_close(ours, expected)


def test_no_sampler_changes_what_it_is_given():
    logits = rows(1)[0]
    settings = SamplingSettings(top_k=9, top_p=0.5, min_p=0.1, repetition_penalty=2)
    sampled_logits(logits, settings, marks([1, 2]))
    assert torch.equal(logits, rows(1)[0])


# Stop strings -------------------------------------------------------------------------------------


def stopped(pieces, stops):
    """The text of pieces of bytes, with what is held back at its end."""
    stopper = StopStrings(stops)
    text = b""
    for piece in pieces:
        text += stopper.feed(piece)
        if stopper.met:
            return text
    return text + stopper.held


@given(st.data())
def test_the_text_ends_where_the_first_stop_string_begins_however_it_is_cut(data):
    text = data.draw(st.text("ab", max_size=30))
    stops = tuple(data.draw(st.lists(st.text("ab", min_size=1, max_size=5), max_size=3)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b].encode() for a, b in itertools.pairwise([0, *cuts, len(text)])]
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(stops or "c")]
    expected = text
    if ends:
        longest = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        expected = text[: ends[0] - len(longest)]
    assert stopped(pieces, stops) == expected.encode()


@given(st.lists(st.text("ab<", max_size=4)), st.text("ab<", min_size=1, max_size=4))
def test_nothing_is_held_back_that_cannot_become_the_stop_string(pieces, stop):
    stopper = StopStrings((stop,))
    for piece in pieces:
        stopper.feed(piece.encode())
        if stopper.met:
            return
        assert len(stopper.held) < len(stop) and stop.encode().startswith(stopper.held)


def test_an_empty_stop_string_stops_nothing():
    assert stopped([b"abc"], ("",)) == b"abc"


def test_a_stop_string_that_no_text_holds_stops_nothing():
    assert stopped([b"a?c"], ("\ud800",)) == b"a?c"
