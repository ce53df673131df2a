"""Calibration: the final norm's weights, fitted to the validation split.

After many passes over a short text a model is too certain of what it predicts elsewhere, and of
some things more than of others. Dividing all logits by one temperature corrects the first (Guo et
al. 2017, arXiv 1706.04599); a factor for each dimension of the last vector corrects both. The
factors become part of the final norm, so that the model's graph stays as it is.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.fused import head_loss
from ..model.transformer import Transformer

CALIBRATION_TOKENS = 32_768
"""Validation tokens, at most, to which the factors are fitted."""
RIDGE = 0.02
"""Weight of the squared distance between the factors and their mean, in nats: with few tokens the
factors come closer to one temperature."""
ITERATIONS = 12
"""Of L-BFGS. It starts from the factors of the epoch before."""
LOGITS_PER_PASS = 1 << 25
"""Logits computed at once; bounds the memory."""


@contextmanager
def rescaled(model: Transformer, factors: Tensor) -> Iterator[None]:
    """Within the block, the final norm's weights (W,) are multiplied by `factors` (W,)."""
    norm = list(model.final_norm.parameters())
    weights = [weight.data for weight in norm]
    for parameter, weight in zip(norm, weights, strict=True):
        parameter.data = weight * factors
    try:
        yield
    finally:
        for parameter, weight in zip(norm, weights, strict=True):
            parameter.data = weight


def fit_factors(states: Tensor, targets: Tensor, model: Transformer, start: Tensor) -> Tensor:
    """The factors (W,) of the final norm with the lowest loss on unseen tokens.

    states (N, W) are the model's last vectors, float32, before the head; targets (N,) the tokens
    that followed. The search begins at `start` (W,) and never ends with a higher loss.
    """
    weight, vocab_size = model.head_weight.detach(), model.config.vocab_size
    factors = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([factors], max_iter=ITERATIONS, line_search_fn="strong_wolfe")
    size = max(1, LOGITS_PER_PASS // vocab_size)
    lowest, best = torch.inf, start

    @torch.enable_grad()
    def loss() -> float:
        nonlocal lowest, best
        optimizer.zero_grad()
        total = 0.0
        for part, ids in zip(states.split(size), targets.split(size), strict=True):
            share = head_loss(part * factors, weight, ids, vocab_size) * (len(ids) / len(targets))
            share.backward()
            total += share.item()
        penalty = RIDGE * F.mse_loss(factors, factors.mean().detach().expand_as(factors))
        penalty.backward()
        total += penalty.item()
        if total < lowest:
            lowest, best = total, factors.detach().clone()
        return total

    optimizer.step(loss)
    return best
