"""Heads that begin by looking back: at first each attends to the token a few places before.

What follows two or three tokens together is the next thing to learn after pairs, and a head has to
find the earlier token first. Rotary positions turn a query and a key by angles that grow with their
positions. So if both are the same for every token, but the query is turned back by an offset, their
product is largest for the key that stands that offset earlier. What is the same for every token is
one dimension of the embedding. The graph stays Qwen3's, and training is free to change all of it.
"""

from typing import cast

import torch

from ..model.transformer import Attention, Transformer
from .bigrams import EMBEDDING_RMS

BLOCKS = (0, 2)
"""Blocks with such heads: between them one that can use what the first found."""
MOST_OFFSETS = 3
"""Head h looks h + 1 tokens back; heads beyond these begin at random."""
CONSTANT = 2 * EMBEDDING_RMS
"""The entry of every embedding in the dimension that all share."""
PAIRS_PER_SIZE = 1 / 16
"""Rotary pairs in use, those that turn fastest, as a share of the head's size."""
GAIN = 2.0
"""Entries of the query and key matrices that read the shared dimension."""
SHRINK = 0.3
"""Factor of the random entries beside them."""


@torch.no_grad()
def look_back(model: Transformer) -> None:
    """Set the query and key rows of some heads, and one dimension of embedding and head."""
    config = model.config
    size, half = config.head_size, config.head_size // 2
    pairs = max(1, int(size * PAIRS_PER_SIZE))
    angles = config.rope_base ** -(torch.arange(pairs) * 2 / size)
    model.token_embedding.weight[:, 0] = CONSTANT
    model.head.weight[:, 0] = 0
    for number in BLOCKS[: -(-config.layers // 2)]:
        attention = cast(Attention, model.blocks[number].attention)
        rows = [heads * size for heads in attention.split]
        queries, keys, _ = attention.qkv.weight.split(rows)
        for head in range(min(MOST_OFFSETS, config.heads)):
            query = queries.view(config.heads, size, -1)[head]
            query.mul_(SHRINK)
            turned = -(head + 1) * angles
            query[:pairs, 0] = GAIN * turned.cos()
            query[half : half + pairs, 0] = GAIN * turned.sin()
        shared = config.heads // config.kv_heads
        for head in range(-(-min(MOST_OFFSETS, config.heads) // shared)):
            key = keys.view(config.kv_heads, size, -1)[head]
            key.mul_(SHRINK)
            key[:pairs, 0], key[half : half + pairs, 0] = GAIN, 0
