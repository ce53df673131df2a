"""The loss of a text is the sum over its tokens, each counted once, however it is cut."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.lm.model import scoring
from stages.lm.model.scoring import score, sliding_windows


@settings(max_examples=300)
@given(
    lead=st.integers(1, 80),
    count=st.integers(1, 200),
    context=st.integers(1, 40),
    min_context=st.integers(0, 39),
)
def test_windows_score_every_token_once_with_the_context_promised(
    lead, count, context, min_context
):
    min_context, total = min(min_context, context - 1), lead + count
    scored = []
    for first, begin, end in sliding_windows(lead, total, context, min_context).tolist():
        assert 0 <= first < begin < end <= total
        assert end - 1 - first <= context
        assert begin - first >= min_context or first == 0
        scored += range(begin, end)
    assert scored == list(range(lead, total))


@pytest.fixture
def text():
    return np.random.Generator(np.random.Philox(4)).integers(0, 75, 90).astype("<u2")


def brute_force(model, sequence, lead, min_context):
    """One forward pass a token, with the same context as its window gives it."""
    nats = 0.0
    windows = sliding_windows(lead, len(sequence), model.config.context, min_context)
    for first, begin, end in windows.tolist():
        for place in range(begin, end):
            inputs = torch.tensor([sequence[first:place].tolist()])
            losses = -model(inputs)[0, -1].double().log_softmax(-1)
            nats += losses[int(sequence[place])].item()
    return nats


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("min_context", [0, 5, 15])
@pytest.mark.parametrize("lead", [1, 7, 40])
def test_the_score_is_the_sum_of_each_tokens_own(
    make_model, machine, text, arch, min_context, lead
):
    model = make_model(arch)
    nats, count = score(model, text[lead:], text[:lead], machine, min_context=min_context)
    assert count == len(text) - lead
    assert nats == pytest.approx(brute_force(model, text, lead, min_context), rel=1e-5)


def test_without_a_lead_the_first_token_is_context(make_model, machine, text):
    model = make_model()
    alone = score(model, text, text[:0], machine)
    assert alone == score(model, text[1:], text[:1], machine) and alone[1] == len(text) - 1


def test_the_batches_do_not_change_the_score(make_model, machine, text, monkeypatch):
    model = make_model()
    together, _ = score(model, text[9:], text[:9], machine, min_context=4)
    monkeypatch.setattr(scoring, "BATCH_TOKENS", 1)
    alone, _ = score(model, text[9:], text[:9], machine, min_context=4)
    assert alone == pytest.approx(together, rel=1e-6)


def test_more_context_than_the_model_has_is_all_it_has(make_model, machine, text):
    model = make_model()
    most = score(model, text[20:], text[:20], machine, min_context=15)
    assert score(model, text[20:], text[:20], machine, min_context=10_000) == most


@pytest.mark.parametrize("max_tokens", [1, 16, 40, 64, 79, 80, 1000])
def test_thinning_scores_about_as_many_tokens_as_asked(make_model, machine, text, max_tokens):
    _, count = score(make_model(), text[10:], text[:10], machine, max_tokens=max_tokens)
    assert count <= max(16, max_tokens) and count >= min(80, max_tokens) - 16


def test_thinning_keeps_windows_from_all_over_the_text(make_model, machine, monkeypatch):
    seen = []
    real = scoring._batches
    monkeypatch.setattr(scoring, "_batches", lambda w, c: seen.append(w) or real(w, c))
    text = np.zeros(1601, dtype="<u2")
    score(make_model(), text[1:], text[:1], machine, max_tokens=160)
    assert seen[0][:, 1].tolist() == [1 + 160 * place for place in range(10)]


def test_a_model_that_knows_nothing_scores_the_uniform_loss(initialised_model, machine, text):
    nats, count = score(initialised_model("qwen3"), text[1:], text[:1], machine)
    assert nats / count == pytest.approx(math.log(75), abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_drops_nothing_and_leaves_the_mode_as_it_was(make_model, machine, text, training):
    model = make_model(dropout=0.5).train(training)
    assert score(model, text[1:], text[:1], machine) == score(model, text[1:], text[:1], machine)
    assert model.training is training


def test_progress_adds_up_to_the_tokens_scored(make_model, machine, text):
    told = []
    _, count = score(make_model(), text[30:], text[:30], machine, progress=told.append)
    assert sum(told) == count == 60


def test_bf16_is_close_to_float32(make_model, machine, text):
    model = make_model()
    exact, _ = score(model, text[9:], text[:9], machine)
    rounded, _ = score(model, text[9:], text[:9], replace(machine, precision="bf16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)
