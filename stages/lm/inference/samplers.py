"""Filters of next-token logits, drawing a token, and stop strings.

The filters are pure functions of logits (V,); a token at -inf is never drawn.
"""

import math

import torch
from torch import Tensor

EXCLUDED = float("-inf")


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (V,) with those of `seen` (V,), bool, less likely; 1 is off.

    Positive ones are divided by `penalty`, others multiplied by it (Keskar et al. 2019,
    arXiv 1909.05858).
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def scale_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Logits (V,) over `temperature`, shifted to a maximum of 0; 0 keeps only the largest."""
    if temperature == 0:
        greedy = torch.full_like(logits, EXCLUDED)
        greedy[logits.argmax()] = 0
        return greedy
    # Shifted first: however small the temperature, nothing overflows.
    return (logits - logits.max()) / temperature


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (V,) with all but the `k` largest at -inf; ties with the k-th stay. 0 is off."""
    if k <= 0 or k >= logits.numel():
        return logits
    threshold = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < threshold, EXCLUDED)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (V,) with all at -inf but the fewest whose probabilities reach `p`; at least one.

    Nucleus sampling (Holtzman et al. 2020); 1 is off.
    """
    if p >= 1:
        return logits
    probabilities = logits.softmax(dim=-1)
    # Tokens below (1 - p) / (2 V) together hold less than 1 - p, so the nucleus never needs them.
    # Leaving them out saves most of the sorting time for a large vocabulary.
    likely = (probabilities > (1 - p) / (2 * len(logits))).nonzero()[:, 0]
    order = likely[torch.sort(logits[likely], descending=True, stable=True).indices]
    # A token goes when those before it already reach p.
    ordered = probabilities[order]
    kept = order[ordered.cumsum(dim=-1) - ordered < p] if p > 0 else order[:1]
    return torch.full_like(logits, EXCLUDED).index_copy(0, kept, logits[kept])


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Logits (V,) with those at -inf that are less than `p` times as likely as the likeliest.

    Nguyen et al. 2024 (arXiv 2407.01082); 0 is off.
    """
    if p <= 0:
        return logits
    return logits.masked_fill(logits < logits.max() + math.log(p), EXCLUDED)


def draw(logits: Tensor, generator: torch.Generator) -> int:
    """A token id drawn from float64 logits (V,) by their softmax."""
    sums = logits.softmax(dim=-1).cumsum(dim=-1)
    point = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
    token = int(torch.searchsorted(sums, point, right=True))
    return min(token, int(logits.isfinite().nonzero()[-1]))


class StopStrings:
    """Ends a text before the stop string that is the first to be complete.

    It takes the text in pieces of bytes and holds back what may still become a stop string, so the
    text that comes out does not depend on the pieces.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        # A lone surrogate, which no text holds, must not stop at the "?" that stands for it.
        self.stops = [stop.encode("utf-8", "surrogatepass") for stop in stops if stop]
        self.held = b""
        self.met = False
        """A stop string came; the text is over."""

    def feed(self, data: bytes) -> bytes:
        """The bytes that are now certain to be part of the text."""
        text, self.held = self.held + data, b""
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops]
        if ends := [(end, start) for end, start in found if start >= 0]:
            self.met = True
            return text[: min(ends)[1]]
        kept = max((overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - kept :]
        return text[: len(text) - kept]


def overlap(text: bytes, stop: bytes) -> int:
    """How many of the last bytes of `text` begin `stop`, without being all of it."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
