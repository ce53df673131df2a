"""Heads that begin by looking back attend to the token at their offset; nothing else changes."""

import pytest
import torch

from stages.lm.training.bigrams import EMBEDDING_RMS
from stages.lm.training.looking_back import BLOCKS, MOST_OFFSETS, look_back

LENGTH = 40


@pytest.fixture
def begun(initialised_model):
    """A model with embeddings of the scale that the bigram start gives them."""

    def make(**fields):
        model = initialised_model(**{"width": 256, "context": LENGTH, "seed": 3} | fields)
        with torch.no_grad():
            model.token_embedding.weight.mul_(EMBEDDING_RMS * 16)
        look_back(model)
        return model.eval().requires_grad_(False)

    return make


def attention_weights(model, block, tokens):
    """(H, T, T) of the first layer's input: at the start, blocks add nothing to it."""
    attention = model.blocks[block].attention
    x = model.blocks[block].attention_norm(model.embed(tokens, 0))
    query, key, _ = attention.heads(x, model.rope(0, tokens.size(1)))
    key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scores = (query @ key.mT / attention.head_size**0.5)[0]
    hidden = torch.ones(LENGTH, LENGTH).triu(1).bool()
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (2, 2), (2, 1), (8, 8), (1, 1)])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_head_attends_most_to_the_token_at_its_offset(begun, heads, block):
    model = begun(heads=heads[0], kv_heads=heads[1], head_size=256 // heads[0], layers=3)
    tokens = torch.arange(LENGTH).view(1, -1)
    weights = attention_weights(model, block, tokens)
    for head in range(min(MOST_OFFSETS, heads[0])):
        back = weights[head].diagonal(-(head + 1))[MOST_OFFSETS:]
        assert back.mean() > 0.3 and (back > 0.1).all()
        assert (weights[head][MOST_OFFSETS + 1 :].argmax(-1) + head + 1).tolist() == list(
            range(MOST_OFFSETS + 1, LENGTH)
        )


def test_other_heads_and_blocks_begin_as_before(begun, initialised_model):
    fields = {"width": 256, "heads": 4, "kv_heads": 4, "head_size": 64, "layers": 4}
    before = initialised_model(context=LENGTH, seed=3, **fields).state_dict()
    after = begun(**fields).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    blocks = {f"blocks.{number}.attention.qkv.weight" for number in BLOCKS}
    assert changed == blocks | {"token_embedding.weight"}  # the head began at zero
    for name in blocks:
        others = torch.ones(768, dtype=torch.bool)
        others[: 64 * MOST_OFFSETS] = others[256 : 256 + 64 * MOST_OFFSETS] = False
        assert torch.equal(before[name][others], after[name][others])


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_shallow_model_has_fewer_such_blocks(begun, layers):
    begun(layers=layers)
