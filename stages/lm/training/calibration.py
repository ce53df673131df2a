"""Temperature scaling (Guo et al. 2017): correct overconfidence with a single number.

A model trained for many epochs is overconfident on unseen text. Dividing all logits by a
temperature chosen on the validation split corrects that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from ..model.transformer import Transformer

CALIBRATION_TOKENS = 16_384
"""Validation tokens on which the temperature is chosen; one number needs no more."""
RATIO = 1.06
"""Ratio of neighbouring temperatures in the search; a parabola through the best three refines."""
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.5, 2.0
"""Limits, in case the validation split is very short or unlike the training split."""


@contextmanager
def temperature_scaled(model: Transformer, temperature: float) -> Iterator[None]:
    """Within the block, divide the logits by `temperature` by scaling the final norm's weights."""
    norm = list(model.final_norm.parameters())
    weights = [weight.data for weight in norm]
    for parameter, weight in zip(norm, weights, strict=True):
        parameter.data = weight / temperature
    try:
        yield
    finally:
        for parameter, weight in zip(norm, weights, strict=True):
            parameter.data = weight


def best_temperature(loss_at: Callable[[float], float], start: float) -> float:
    """The temperature with the lowest loss, searched from `start` in steps of `RATIO`.

    `loss_at` returns the loss at a temperature. It is convex in 1 / temperature, so the first local
    minimum is the global one.
    """

    def temperature(exponent: float) -> float:
        unbounded: float = start * RATIO**exponent
        return min(max(unbounded, MIN_TEMPERATURE), MAX_TEMPERATURE)

    @cache
    def loss(exponent: int) -> float:
        return loss_at(temperature(exponent))

    best = 0
    while loss(neighbour := min(best - 1, best + 1, key=loss)) < loss(best):
        best = neighbour
    before, here, after = (loss(best + offset) for offset in (-1, 0, 1))
    curvature = before - 2 * here + after
    vertex = (before - after) / (2 * curvature) if curvature > 0 else 0.0
    return temperature(best + vertex)
