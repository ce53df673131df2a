"""Exponential moving average of the trained weights (`train.ema_decay`)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Averages of `weights`, which an optimizer updates in place.

    With a decay of 0 nothing is averaged, and `ema_weights` leaves the weights as they are.
    """

    def __init__(self, weights: list[Tensor], decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self.averages: list[Tensor] = []
        """One tensor per weight, created by the first update; saved with the run's state."""

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights after a step (counted from 0).

        The decay rises from 1 / 10 to the setting, so that the initial weights, which are far from
        the trained ones, soon lose their influence.
        """
        if not self._decay:
            return
        if not self.averages:
            self.averages = [weight.clone() for weight in self._weights]
        decay = min(self._decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.averages, self._weights, 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Within the block, the model uses the averages, if there are any."""
        tensors = [weight.data for weight in self._weights]
        for weight, average in zip(self._weights, self.averages or tensors, strict=True):
            weight.data = average
        try:
            yield
        finally:
            for weight, tensor in zip(self._weights, tensors, strict=True):
                weight.data = tensor
