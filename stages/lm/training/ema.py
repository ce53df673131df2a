"""Exponential moving average of the trained weights (`train.ema_decay`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """The averages of `weights`, which are updated in place by an optimizer.

    With a decay of 0 there are none, and the weights themselves stand for them.
    """

    def __init__(self, weights: list[Tensor], decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.averages: list[Tensor] = []
        """One for each weight, from the first update on; part of the state of a run."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after a step (counted from 0).

        The decay begins at 1 / 10 and rises to the one asked for, so that the first weights, which
        are far off, are soon forgotten.
        """
        if not self._decay:
            return
        if not self.averages:
            self.averages = [weight.clone() for weight in self._weights]
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.averages, self._weights, 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Put the averages, if there are any, in the place of the weights for the block."""
        tensors = [weight.data for weight in self._weights]
        for weight, average in zip(self._weights, self.averages or tensors, strict=True):
            weight.data = average
        try:
            yield
        finally:
            for weight, tensor in zip(self._weights, tensors, strict=True):
                weight.data = tensor
