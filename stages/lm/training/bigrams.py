"""The first part of training: embedding and head, on every pair of neighbouring tokens at once.

As long as every block adds nothing to the residual stream, the model is a function of the last
token alone, and its loss on the whole text a function of how often each pair of tokens occurs. So
full-batch steps on that loss cost a product of (vocabulary, width) matrices whatever the length
of the text: the model starts as the best low-rank bigram model instead of a uniform one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..model.runtime import Machine
from ..model.transformer import Transformer

MAX_VOCABULARY = 16_384
"""A table of this many squared takes a gigabyte."""
STEPS = 50
LEARNING_RATE = 0.05
"""Of Adam; held for half of the steps, then falling to zero in a line."""
DISCOUNT = 0.75
"""Taken from each pair's count and given to all tokens by their frequency (Ney et al. 1994):
without it the head learns pairs that occurred once by heart."""
EMBEDDING_RMS = 0.25
"""Root mean square of an embedding's entries. The norms of the blocks make the scale free; it
decides how soon what the blocks add outweighs the last token."""
COUNTED_AT_ONCE = 1 << 22
"""Pairs; bounds the memory beyond the counts themselves."""


def discounted_counts(tokens: np.ndarray, vocab_size: int) -> Tensor:
    """How often token j follows token i, (vocab_size, vocab_size) float32, smoothed by row."""
    counts = torch.zeros(vocab_size * vocab_size)
    for start in range(0, len(tokens) - 1, COUNTED_AT_ONCE):
        part = torch.from_numpy(tokens[start : start + COUNTED_AT_ONCE + 1].astype(np.int64))
        pairs = part[:-1] * vocab_size + part[1:]
        counts += torch.bincount(pairs, minlength=counts.numel())
    counts = counts.view(vocab_size, vocab_size)
    frequency = counts.sum(dim=0) + 1
    kept = (counts - DISCOUNT).clamp(min=0)
    taken = counts.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)
    return kept + taken * (frequency / frequency.sum())


def fit_bigrams(
    model: Transformer, tokens: np.ndarray, machine: Machine, generator: torch.Generator
) -> None:
    """Set the token embedding and the head of an untrained `model` to fit pairs of `tokens`.

    Raises:
        UserError: the vocabulary is too large for a square table.
    """
    config = model.config
    if config.vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"model.init is bigrams, which takes at most {MAX_VOCABULARY:,} tokens, but the "
            f"vocabulary has {config.vocab_size:,}; set model.init to random."
        )
    counts = discounted_counts(tokens, config.vocab_size).to(machine.device)
    shape = (config.vocab_size, config.width)
    embedding = torch.randn(shape, generator=generator).to(machine.device).requires_grad_()
    head = torch.zeros(shape, device=machine.device, requires_grad=True)
    adam = torch.optim.Adam([embedding, head], betas=(0.9, 0.95))
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / STEPS))
        with machine.autocast():
            logits = F.linear(F.rms_norm(embedding, (config.width,)), head)
        loss = -(counts * logits.float().log_softmax(dim=-1)).sum() / counts.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        scaled = EMBEDDING_RMS * F.rms_norm(embedding, (config.width,))
        model.token_embedding.weight[: config.vocab_size] = scaled
        model.head.weight[: config.vocab_size] = head
