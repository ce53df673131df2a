"""The surprisal of each token of a given text, and the attention between its tokens."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..inference.loading import LoadedModel
from ..model.scoring import sliding_windows

LEAD = b"\n"
"""Put before a text, as before an empty prompt, so that its first token can be scored too; where
the model was trained on documents, the mark that begins them."""


@dataclass(frozen=True)
class TokenSurprisal:
    """A token of a text, and what the model predicted at its position."""

    data: bytes
    nats: float
    """Surprisal: -ln of the token's probability given the tokens before it."""
    rank: int
    """Number of tokens that were more likely."""
    likeliest: list[tuple[bytes, float]]
    """The most likely tokens and their probabilities, in descending order."""


@torch.inference_mode()
def token_surprisals(
    loaded: LoadedModel, text: bytes, *, min_context: int = 64, top_k: int = 5
) -> list[TokenSurprisal]:
    """Every token of `text` with its surprisal and the `top_k` most likely tokens.

    Uses the windows of `scoring.score`, so the sum of `nats` is the loss that `score` computes for
    the same tokens after `LEAD`, up to rounding.
    """
    encode = loaded.tokenizer.encode
    lead = loaded.opening or encode(LEAD)
    ids = np.array([*lead, *encode(text)], np.int64)
    context = loaded.model.config.context
    tokens = []
    for start, first, end in sliding_windows(
        len(lead), len(ids), context, min(min_context, context - 1)
    ):
        rows = torch.from_numpy(ids[start : end - 1])[None].to(device_of(loaded))
        logits = loaded.model(rows)[0, first - end :].float()
        tokens += surprisals_from_logits(loaded, logits, ids[first:end], top_k)
    return tokens


def surprisals_from_logits(
    loaded: LoadedModel, logits: torch.Tensor, ids: np.ndarray, top_k: int
) -> list[TokenSurprisal]:
    """The surprisal of each of `ids` (T,) under the logits (T, V) at its position."""
    logprobs = logits.log_softmax(dim=-1)
    actual = logprobs.gather(1, torch.from_numpy(ids).to(logprobs.device)[:, None])
    ranks = (logprobs > actual).sum(dim=1)
    top = logprobs.topk(min(top_k, logprobs.size(1)))
    columns = (actual[:, 0], ranks, top.indices, top.values.exp())
    shown = loaded.tokenizer.shown
    return [
        TokenSurprisal(
            shown(token),
            -logprob,
            rank,
            [(shown(other), p) for other, p in zip(top_ids, probabilities, strict=True)],
        )
        for token, logprob, rank, top_ids, probabilities in zip(
            ids.tolist(), *(column.tolist() for column in columns), strict=True
        )
    ]


@torch.inference_mode()
def attention(loaded: LoadedModel, text: bytes, layer: int) -> tuple[list[bytes], torch.Tensor]:
    """The tokens of `text` that fit into the context, and a layer's attention weights (H, T, T).

    Row i of a head holds the weights with which token i attends to tokens 0 ... i; they sum to 1.
    """
    model = loaded.model
    ids = loaded.tokenizer.encode(text)[: model.config.context]
    x = model.hidden(torch.tensor([ids], device=device_of(loaded)), depth=layer)
    last: Any = model.blocks[layer]
    rope = model.rope(layer, 0, len(ids))
    query, key, _ = last.attention.heads(last.attention_norm(x), rope)
    key = key.repeat_interleave(query.size(1) // key.size(1), dim=1)
    scores = query @ key.mT * query.size(3) ** -0.5
    seen = torch.ones_like(scores[0, 0], dtype=torch.bool).tril()
    if window := model.config.window(layer):
        seen = seen.triu(1 - window)
    shares = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1)[0]
    return [loaded.tokenizer.tokens[token] for token in ids], shares


def device_of(loaded: LoadedModel) -> torch.device:
    """The device of the model's weights."""
    return loaded.model.token_embedding.weight.device
