"""Bigram initialisation: fit embedding and head to the pair counts of the training text.

At initialisation every block adds zero to the residual stream. The model then predicts from the
last token alone, and its loss on the text depends only on the pair counts. A full-batch step on
that loss is a product of (vocabulary, width) matrices, whatever the length of the text. Training
so begins from a low-rank bigram model instead of a uniform distribution.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UserError
from ..model.runtime import Machine
from ..model.transformer import Transformer

MAX_VOCABULARY = 16_384
"""The float32 table of pair counts takes a gigabyte at this size."""
STEPS = 50
LEARNING_RATE = 0.05
"""Of Adam: constant for half of the steps, then linear decay to zero."""
DISCOUNT = 0.75
"""Absolute discounting (Ney et al. 1994): subtracted from each pair's count and redistributed in
proportion to the tokens' frequencies. Without it the head memorises pairs that occur once."""
EMBEDDING_RMS = 0.25
"""Root mean square of an embedding's entries. The norms make the bigram fit independent of it; it
sets how fast the outputs of the blocks come to outweigh the embedding in the residual stream."""
PAIRS_PER_PASS = 1 << 22
"""Pairs counted per pass; bounds the memory needed besides the table."""


def discounted_counts(tokens: np.ndarray, vocab_size: int) -> Tensor:
    """Discounted counts of token j after token i: (vocab_size, vocab_size) float32.

    Each row keeps its sum.
    """
    counts = torch.zeros(vocab_size * vocab_size)
    for start in range(0, len(tokens) - 1, PAIRS_PER_PASS):
        part = torch.from_numpy(tokens[start : start + PAIRS_PER_PASS + 1].astype(np.int64))
        pairs = part[:-1] * vocab_size + part[1:]
        counts += torch.bincount(pairs, minlength=counts.numel())
    counts = counts.view(vocab_size, vocab_size)
    frequency = counts.sum(dim=0) + 1
    kept = (counts - DISCOUNT).clamp(min=0)
    removed = counts.sum(dim=1, keepdim=True) - kept.sum(dim=1, keepdim=True)
    return kept + removed * (frequency / frequency.sum())


def fit_bigrams(
    model: Transformer,
    tokens: np.ndarray,
    machine: Machine,
    generator: torch.Generator,
    reserved: int = 0,
) -> None:
    """Fit the token embedding and the head of an untrained `model` to the pairs in `tokens`.

    The first `reserved` dimensions stay as they are.

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
    width = config.width - reserved
    shape = (config.vocab_size, width)
    embedding = torch.randn(shape, generator=generator).to(machine.device).requires_grad_()
    head = torch.zeros(shape, device=machine.device, requires_grad=True)
    adam = torch.optim.Adam([embedding, head], betas=(0.9, 0.95))
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1.0, 2 * (1 - step / STEPS))
        with machine.autocast():
            logits = F.linear(F.rms_norm(embedding, (width,)), head)
        loss = -(counts * logits.float().log_softmax(dim=-1)).sum() / counts.sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        scaled = EMBEDDING_RMS * F.rms_norm(embedding, (width,))
        model.token_embedding.weight[: config.vocab_size, reserved:] = scaled
        model.head.weight[: config.vocab_size, reserved:] = head
