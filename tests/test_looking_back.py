"""Heads that begin by looking back attend where they should, in an otherwise ordinary model."""

import pytest
import torch

from stages.lm.training.bigrams import EMBEDDING_RMS
from stages.lm.training.looking_back import (
    FIRST,
    MOST_OFFSETS,
    THIRD,
    look_back,
    reserved_dimensions,
)

LENGTH = 40
HEADS = [(4, 4), (4, 2), (2, 2), (2, 1), (8, 8), (1, 1)]


@pytest.fixture
def begun(initialised_model):
    """A model with embeddings of the scale that the bigram start gives them."""

    def make(heads=(4, 4), drawn=1, **fields):
        shape = {"width": 256, "context": LENGTH, "layers": 4, "vocab_size": 75, "seed": 3}
        shape |= {"heads": heads[0], "kv_heads": heads[1], "head_size": 256 // heads[0]}
        model = initialised_model(**shape | fields)
        with torch.no_grad():
            model.token_embedding.weight.mul_(EMBEDDING_RMS * 16)
        look_back(model, torch.Generator().manual_seed(drawn))
        return model.eval().requires_grad_(False)

    return make


def attention_weights(model, block, tokens):
    """(H, T, T) of a block, whose input is that of a model that has not been trained yet."""
    attention = model.blocks[block].attention
    x = model.blocks[block].attention_norm(model.hidden(tokens, depth=block))
    query, key, _ = attention.heads(x, model.rope(0, 0, tokens.size(1)))
    key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scores = (query @ key.mT / attention.head_size**0.5)[0]
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("block", [FIRST, THIRD])
def test_a_head_attends_most_to_the_token_at_its_offset(begun, heads, block):
    model = begun(heads)
    weights = attention_weights(model, block, torch.arange(LENGTH).view(1, -1))
    induction = heads[0] // heads[1] if block == THIRD and heads[1] > 1 else 0
    for head in range(min(MOST_OFFSETS, heads[0] - induction)):
        back = weights[head].diagonal(-(head + 1))[MOST_OFFSETS:]
        assert back.mean() > 0.3 and (back > 0.1).all()
        found = weights[head][MOST_OFFSETS + 1 :].argmax(-1) + head + 1
        assert found.tolist() == list(range(MOST_OFFSETS + 1, LENGTH))


@pytest.mark.parametrize("heads", [each for each in HEADS if each[1] > 1 and each[0] < 8])
def test_a_head_attends_to_what_followed_the_last_two_tokens_before(begun, heads):
    model = begun(heads)
    period = LENGTH // 2
    tokens = torch.randperm(75, generator=torch.Generator().manual_seed(2))[:period].repeat(2)
    weights = attention_weights(model, THIRD, tokens.view(1, -1))[-1]
    after = weights.diagonal(1 - period)[2 : period - 1]  # one place after where they stood before
    assert len(after) > 10 and after.mean() > 0.5 and (after > 0.2).all()


@pytest.mark.parametrize("drawn", [3, 4])  # with these, the current token alone prefers place 22
def test_two_tokens_that_match_weigh_more_than_one(begun, drawn):
    model = begun(drawn=drawn)
    tokens = torch.arange(LENGTH)
    tokens[10:12], tokens[20:22] = torch.tensor([50, 60]), torch.tensor([51, 60])
    tokens[30:32] = torch.tensor([50, 60])
    weights = attention_weights(model, THIRD, tokens.view(1, -1))[-1, 31]
    assert weights.argmax() == 12 and weights[12] > 2 * weights[22] > 10 * weights[25]


def test_what_heads_do_not_use_begins_as_before(begun, initialised_model):
    shape = {"width": 256, "heads": 4, "kv_heads": 4, "head_size": 64, "layers": 4}
    before = initialised_model(context=LENGTH, vocab_size=75, seed=3, **shape).state_dict()
    after = begun().state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {  # the head began at zero
        "token_embedding.weight",
        *(f"blocks.{number}.attention.qkv.weight" for number in (FIRST, THIRD)),
        f"blocks.{FIRST}.attention.out.weight",
    }
    free = reserved_dimensions(begun().config)
    assert free < 40 and not after["token_embedding.weight"][:, 1:free].any()
    torch.testing.assert_close(
        after["token_embedding.weight"][:, free:],
        before["token_embedding.weight"][:, free:] * EMBEDDING_RMS * 16,
    )


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("size", [8, 16, 30, 64])
def test_small_models_have_what_there_is_room_for(begun, layers, size):
    model = begun(layers=layers, width=4 * size, head_size=size)
    assert reserved_dimensions(model.config) < 4 * size // 2 or layers < 3
    assert all(weight.isfinite().all() for weight in model.state_dict().values())
