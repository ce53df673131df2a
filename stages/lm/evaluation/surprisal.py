"""What a model makes of a given text, token by token. Knows nothing about how it is shown."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..inference.loading import LoadedModel
from ..model.scoring import sliding_windows

LEAD = b"\n"
"""Stands before a text that is read, as before an empty prompt, so that its first token counts."""


@dataclass(frozen=True)
class TokenSurprisal:
    """A token of a text and what the model expected in its place."""

    data: bytes
    nats: float
    """-ln of its probability given the tokens before it: its surprise."""
    rank: int
    """How many tokens were likelier."""
    likeliest: list[tuple[bytes, float]]
    """The tokens that were expected most and their probabilities, likeliest first."""


@torch.inference_mode()
def read(
    loaded: LoadedModel, text: bytes, *, min_context: int = 64, likeliest: int = 5
) -> list[TokenSurprisal]:
    """Every token of `text` with its surprise.

    The windows are those of `scoring.score`: the nats sum to what it gives for the same tokens
    after `LEAD`, to within rounding.
    """
    encode = loaded.tokenizer.encode
    lead = encode(LEAD)
    ids = np.array([*lead, *encode(text)], np.int64)
    context = loaded.model.config.context
    tokens = []
    for start, first, end in sliding_windows(
        len(lead), len(ids), context, min(min_context, context - 1)
    ):
        rows = torch.from_numpy(ids[start : end - 1])[None].to(device_of(loaded))
        logits = loaded.model(rows)[0, first - end :].float()
        tokens += explained(loaded, logits, ids[first:end], likeliest)
    return tokens


def explained(
    loaded: LoadedModel, logits: torch.Tensor, ids: np.ndarray, likeliest: int
) -> list[TokenSurprisal]:
    """Each of `ids` (T,) beside what the logits (T, V) in its place expected."""
    logs = logits.log_softmax(dim=-1)
    chosen = logs.gather(1, torch.from_numpy(ids).to(logs.device)[:, None])
    ranks = (logs > chosen).sum(dim=1)
    tops = logs.topk(min(likeliest, logs.size(1)))
    columns = (chosen[:, 0], ranks, tops.indices, tops.values.exp())
    known = loaded.tokenizer.tokens
    return [
        TokenSurprisal(
            known[token], -log, rank, [(known[i], p) for i, p in zip(places, shares, strict=True)]
        )
        for token, log, rank, places, shares in zip(
            ids.tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]


@torch.inference_mode()
def attention(loaded: LoadedModel, text: bytes, layer: int) -> tuple[list[bytes], torch.Tensor]:
    """The tokens of `text` that fit the context, and how each attends to each: (H, T, T).

    Row i of a head holds the shares of its attention that token i gives to tokens 0 ... i.
    """
    model = loaded.model
    ids = loaded.tokenizer.encode(text)[: model.config.context]
    x, rope = model.embed(torch.tensor([ids], device=device_of(loaded)), 0)
    for block in model.blocks[:layer]:
        x = block(x, rope, None)
    last: Any = model.blocks[layer]
    query, key, _ = last.attention.heads(last.attention_norm(x), rope)
    key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scores = query @ key.mT * query.size(3) ** -0.5
    future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, float("-inf")).softmax(dim=-1)[0]
    return [loaded.tokenizer.tokens[token] for token in ids], shares


def device_of(loaded: LoadedModel) -> torch.device:
    """Where the model's weights are."""
    return loaded.model.token_embedding.weight.device
