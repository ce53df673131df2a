"""Heads that begin by looking back: a few tokens, or to where the text was like this before.

What follows two or three tokens together is the next thing to learn after pairs, and what followed
when the last two tokens stood here before is the next after that. For both a head has to find
earlier tokens first, which takes a model that begins at random many steps. Here the heads begin
with it. The graph stays Qwen3's, and training is free to change all of it.

**At an offset.** Rotary positions turn a query and a key by angles that grow with their positions.
If both are the same for every token, but the query is turned back by an offset, their product is
largest for the key that stands that offset earlier. What is the same for every token is the first
dimension of the embedding.

**At the last occurrence** (an induction head, Olsson et al. 2022, arXiv 2209.11895). Heads of the
first block copy a random projection of the tokens before into dimensions kept free for that. A head
of the third compares the current token and the one before it with those copies, and so attends to
tokens that followed the same two. It uses the rotary pairs that turn slowest: distance counts
little.
"""

from typing import cast

import torch
from torch import Tensor

from ..model.attention import Attention
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from .bigrams import EMBEDDING_RMS

FIRST, THIRD = 0, 2
"""The blocks with such heads; the one between them can use what the first found."""
MOST_OFFSETS = 3
"""Head h looks h + 1 tokens back; heads beyond these begin at random."""
CONSTANT = 2 * EMBEDDING_RMS
"""The entry of every embedding in the dimension that all share."""
PAIRS_PER_SIZE = 1 / 16
"""Rotary pairs that find an offset, those that turn fastest, as a share of the head's size."""
GAIN = 2.0
"""Entries of the query and key matrices that read the shared dimension."""
SHRINK = 0.3
"""Factor of the random entries beside them."""
COMPARED = 3 / 8
"""Share of a head's dimensions that compare tokens; of these, `BEFORE` compare the one before."""
BEFORE = 2 / 5
COPY = EMBEDDING_RMS / 2
"""Entries of the first block's output matrix that copy: how large copies are in the stream."""
COPY_GAIN = 2.0
"""Entries of the query and key matrices that read copies."""
FAINT = 0.05
"""Factor of the random entries beside them."""


def sizes(config: ModelConfig) -> tuple[int, int]:
    """How many entries compare the current token and the one before it, in an induction head.

    (0, 0) where there is no room for one: it takes a third block and, for itself, a key head that
    no head at an offset uses.
    """
    if config.layers <= THIRD or config.kv_heads < 2:
        return 0, 0
    total = 2 * int(config.head_size * COMPARED / 2)
    before = int(total * BEFORE)
    return total - before, before


def reserved_dimensions(config: ModelConfig) -> int:
    """The first dimensions of the embedding: one shared by all tokens, and those of the copies."""
    current, before = sizes(config)
    return 1 + current + 2 * before


@torch.no_grad()
def look_back(model: Transformer, generator: torch.Generator) -> None:
    """Set the heads that look back, and the dimensions of embedding and head that they use.

    The embedding's and the head's other dimensions stay as they are.
    """
    config, first = model.config, reserved_dimensions(model.config)
    for table in (model.token_embedding.weight, model.head.weight):
        table[:, :first] = 0
    model.token_embedding.weight[:, 0] = CONSTANT
    induction = config.heads // config.kv_heads if first > 1 else 0
    for number, heads in ((FIRST, config.heads), (THIRD, config.heads - induction)):
        if number < config.layers:
            for head in range(min(MOST_OFFSETS, heads)):
                look_at_offset(_matrices(model, number), head, head + 1, config)
    if induction:
        look_for_occurrence(model, generator)


def look_at_offset(
    matrices: tuple[Tensor, Tensor, Tensor], head: int, offset: int, config: ModelConfig
) -> None:
    """Make a head attend `offset` tokens back. `matrices` are of `_matrices`."""
    size, half = config.head_size, config.head_size // 2
    pairs = max(1, int(size * PAIRS_PER_SIZE))
    turned = -offset * config.rope_base ** -(torch.arange(pairs) * 2 / size)
    query, key = matrices[0][head], matrices[1][head * config.kv_heads // config.heads]
    query.mul_(SHRINK)
    query[:pairs, 0] = GAIN * turned.cos()
    query[half : half + pairs, 0] = GAIN * turned.sin()
    if head % (config.heads // config.kv_heads) == 0:  # the first of the heads that share the key
        key.mul_(SHRINK)
    key[:pairs, 0], key[half : half + pairs, 0] = GAIN, 0


def look_for_occurrence(model: Transformer, generator: torch.Generator) -> None:
    """Make the last head of the third block attend to what followed the last two tokens before."""
    config, size = model.config, model.config.head_size
    (current, before), free = sizes(config), reserved_dimensions(config)
    compared = current + before
    projection = torch.zeros(compared, config.width)
    drawn = torch.randn(config.width - free, compared, generator=generator)
    projection[:, free:] = torch.linalg.qr(drawn)[0].T
    # Of the token before: one copy for keys, one for queries; of the token before that: for keys.
    key_one, key_two, query_one = torch.arange(1, free).split([current, before, before])
    out = cast(Attention, model.blocks[FIRST].attention).out.weight
    values = _matrices(model, FIRST)[2]
    for head, copies in ((0, torch.cat([key_one, query_one])), (1, key_two)):
        values[head * config.kv_heads // config.heads, :compared] = projection
        columns = head * size + torch.arange(compared - len(copies), compared)
        out[copies, columns] = COPY
    queries, keys, _ = _matrices(model, THIRD)
    query, key = queries[-1], keys[-1]
    slowest = torch.arange(size).view(2, -1)[:, -compared // 2 :].flatten()
    rows = slowest[torch.randperm(compared, generator=generator)]
    query.mul_(FAINT)
    key.mul_(FAINT)
    query[rows[:current]] = projection[:current]
    query[rows[current:], query_one] = COPY_GAIN
    key[rows[:current], key_one] = COPY_GAIN
    key[rows[current:], key_two] = COPY_GAIN


def _matrices(model: Transformer, block: int) -> tuple[Tensor, Tensor, Tensor]:
    """The query, key and value matrices of a block, by head: (heads, head size, width) each."""
    attention = cast(Attention, model.blocks[block].attention)
    heads = attention.qkv.weight.unflatten(0, (-1, attention.head_size))
    queries, keys, values = heads.split(attention.split)
    return queries, keys, values
