"""Discounted pair counts, and the model that is fitted to them."""

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages.lm.model.runtime import Machine
from stages.lm.training import bigrams
from stages.lm.training.bigrams import DISCOUNT, discounted_counts, fit_bigrams

VOCAB = 75


@pytest.fixture(scope="module")
def tokens():
    """Each token is followed by one of a few of its own, most of the time."""
    random = np.random.Generator(np.random.Philox(1))
    successors = random.integers(0, VOCAB, (VOCAB, 4))
    found = [0]
    for _ in range(6000):
        choice = int(random.choice(4, p=[0.6, 0.2, 0.1, 0.1]))
        noise = int(random.integers(0, VOCAB)) if random.random() < 0.1 else None
        found.append(int(successors[found[-1], choice]) if noise is None else noise)
    return np.array(found, dtype="<u2")


@pytest.fixture
def fitted(initialised_model, tokens, machine):
    def fit(seed=0, text=tokens, machine=machine, **fields):
        model = initialised_model(vocab_size=VOCAB, seed=1, **fields)
        fit_bigrams(model, text, machine, torch.Generator().manual_seed(seed))
        return model.eval().requires_grad_(False)

    return fit


def counted(tokens, vocab_size):
    """The same by counting, row by row."""
    ids = [int(token) for token in tokens]
    pairs, ends = Counter(pairwise(ids)), Counter(ids[1:])
    frequency = [(ends[token] + 1) / (len(ids) - 1 + vocab_size) for token in range(vocab_size)]
    rows = []
    for first in range(vocab_size):
        row = [pairs[first, second] for second in range(vocab_size)]
        taken = sum(min(count, DISCOUNT) for count in row)
        rows.append(
            [
                max(count - DISCOUNT, 0) + taken * share
                for count, share in zip(row, frequency, strict=True)
            ]
        )
    return torch.tensor(rows)


def cross_entropy(counts):
    """Cross-entropy of the pairs under these counts, in nats per pair."""
    return -(counts * (counts / counts.sum(-1, keepdim=True)).log().nan_to_num(0, 0, 0)).sum()


@pytest.mark.parametrize("length", [2, 3, 50, 2000])
@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_the_counts_are_those_of_a_plain_count(length, dtype):
    random = np.random.Generator(np.random.Philox(length))
    tokens = np.minimum(random.geometric(0.15, length), 29).astype(dtype)
    found = discounted_counts(tokens, 30)
    torch.testing.assert_close(found, counted(tokens, 30), atol=1e-4, rtol=1e-5)


def test_a_row_sums_to_how_often_its_token_is_followed(tokens):
    sums = discounted_counts(tokens, VOCAB).sum(1)
    expected = np.bincount(tokens[:-1], minlength=VOCAB).astype("<f4")
    torch.testing.assert_close(sums, torch.from_numpy(expected), atol=1e-2, rtol=0)


def test_the_discount_is_redistributed_by_token_frequency():
    rows = discounted_counts(np.array([0, 1, 0, 1, 0, 2]), 4)
    assert rows[0].tolist() == pytest.approx(
        [1.5 * 3 / 9, 2 - DISCOUNT + 1.5 * 3 / 9, 1 - DISCOUNT + 1.5 * 2 / 9, 1.5 * 1 / 9]
    )
    assert DISCOUNT == 0.75


def test_a_token_that_nothing_follows_has_a_row_of_zeros():
    rows = discounted_counts(np.array([0, 1, 0, 2]), 4)
    assert not rows[2:].any() and rows[:2].all()


@pytest.mark.parametrize("size", [1, 2, 7, 5999, 6000, 6001])
def test_pairs_across_a_chunk_boundary_are_counted_once(tokens, monkeypatch, size):
    at_once = discounted_counts(tokens, VOCAB)
    monkeypatch.setattr(bigrams, "PAIRS_PER_PASS", size)
    assert torch.equal(discounted_counts(tokens, VOCAB), at_once)


def test_the_model_predicts_the_text_nearly_as_well_as_its_pairs_can(fitted, tokens):
    ids = torch.from_numpy(tokens.astype(np.int64))
    rows, targets = ids[:6000].view(-1, 16), ids[1:6001].view(-1, 16)
    loss = F.cross_entropy(fitted()(rows).flatten(0, 1), targets.flatten()).item()
    pairs = torch.zeros(VOCAB, VOCAB).index_put_((ids[:-1], ids[1:]), torch.ones(()), True)
    unigram, bigram = (cross_entropy(c).item() / 6000 for c in (pairs.sum(0), pairs))
    assert bigram < loss < unigram - 1
    assert loss < bigram + 0.25


def test_a_prediction_depends_on_the_last_token_alone(fitted):
    model = fitted()
    first, second = torch.randint(
        VOCAB, (2, 4, 16), generator=torch.Generator().manual_seed(2)
    ).unbind()
    second[:, -1] = first[:, -1]
    torch.testing.assert_close(model(first)[:, -1], model(second)[:, -1], atol=1e-5, rtol=0)
    second[:, -1] = (first[:, -1] + 1) % VOCAB
    assert (model(first)[:, -1] - model(second)[:, -1]).abs().amax(-1).min() > 0.1


def test_every_token_gets_some_probability(fitted):
    log_probabilities = fitted()(torch.arange(VOCAB).unsqueeze(1)).log_softmax(-1)
    assert log_probabilities.min() > math.log(1e-6)


def test_the_same_seed_gives_the_same_bits_and_another_others(fitted):
    weights = [fitted(seed).state_dict() for seed in (1, 1, 2)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    for name in ("token_embedding.weight", "head.weight"):
        assert not torch.equal(weights[0][name], weights[2][name])


def test_only_the_rows_of_the_vocabulary_change(fitted, initialised_model):
    before = initialised_model(vocab_size=VOCAB, seed=1).state_dict()
    after = fitted().state_dict()
    for name in ("token_embedding.weight", "head.weight"):
        old, new = before.pop(name), after.pop(name)
        assert len(new) > VOCAB and torch.equal(old[VOCAB:], new[VOCAB:])
        assert not torch.equal(old[:VOCAB], new[:VOCAB])
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_embeddings_have_the_scale_they_are_given(fitted):
    rows = fitted().token_embedding.weight[:VOCAB]
    expected = torch.full((VOCAB,), bigrams.EMBEDDING_RMS)
    torch.testing.assert_close(rows.square().mean(1).sqrt(), expected, rtol=1e-4, atol=0)


def test_a_text_of_one_pair_is_enough(fitted):
    model = fitted(text=np.array([5, 6], dtype="<u2"))
    assert model(torch.tensor([[5]])).argmax() == 6
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_bf16_fits_as_well(fitted, tokens):
    rows = torch.from_numpy(tokens[:6000].astype(np.int64)).view(-1, 16)
    losses = []
    for precision in ("float32", "bf16"):
        model = fitted(machine=Machine(torch.device("cpu"), precision, 1))
        logits = model(rows[:, :-1]).flatten(0, 1)
        losses.append(F.cross_entropy(logits, rows[:, 1:].flatten()).item())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], abs=0.02)
