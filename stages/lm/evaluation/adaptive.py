"""The loss of a model with a neural cache. It is adaptive: what was read changes the predictions.

How the cache is mixed in is fitted on the validation split; test data plays no part in that.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import TokenData
from ..inference.loading import LoadedModel
from ..inference.neural_cache import CacheMix, code_cosines, state_codes
from ..model.runtime import Machine
from ..model.scoring import ScoredBatch, scored_batches
from .held_out import LossSum, ScoredPart, losses_by_split

FIT_TOKENS = 30_000
"""Tokens of the validation split, from its start, that the mix is fitted on."""
CANDIDATES = [
    CacheMix(temperature=temperature, decay=decay)
    for temperature, decay in product((0.03, 0.05, 0.08), (0.0, 0.3, 0.6))
]
GATE = ("bias", "nearest", "entropy")
"""The fields of `CacheMix` that are fitted for each of the candidates, from its values on."""
GATE_SPREAD = torch.tensor([5.0, 5.0, 0.5], dtype=torch.float64)
"""Their standard deviations in a normal prior: a few tokens do not move them far."""
BLOCK = 256
"""Tokens that are compared with the cache at once."""


class Votes(NamedTuple):
    """What the model and the cache say of N tokens, float64 on the CPU."""

    model: Tensor
    """The model's log-probability of each token (N,)."""
    entropy: Tensor
    """That of the model's probabilities (N,), in nats."""
    nearest: Tensor
    """The largest cosine in the cache (N,)."""
    cache: Tensor
    """The cache's log-probability of each token (mixes, N), by each of the mixes asked for."""

    def logprobs(self, mix: CacheMix, index: int = 0) -> Tensor:
        """Log-probabilities (N,) with `mix`, the `index`-th of those asked for."""
        of_cache, of_model = mix.log_shares(self.nearest, self.entropy)
        return torch.logaddexp(self.model + of_model, self.cache[index] + of_cache)


def count_votes(
    batches: Iterable[ScoredBatch], size: int, mixes: Sequence[CacheMix]
) -> Iterator[Votes]:
    """The votes on the tokens of a text, in blocks, by a cache of the `size` before each."""
    keys = tokens = None
    for batch in batches:
        logprobs = batch.logits.log_softmax(dim=-1)
        model = logprobs.gather(1, batch.targets[:, None])[:, 0].double().cpu()
        entropy = -(logprobs.exp() * logprobs).sum(dim=-1).double().cpu()
        codes, targets = state_codes(batch.states.cpu()), batch.targets.cpu()
        keys = codes if keys is None else torch.cat((keys[-size:], codes))
        tokens = targets if tokens is None else torch.cat((tokens[-size:], targets))
        every = torch.arange(len(keys) - len(codes), len(keys))
        blocks = (each.split(BLOCK) for each in (every, model, entropy))
        for rows, own, entropies in zip(*blocks, strict=True):
            nearest, cache = _votes_of(keys, tokens, rows, size, mixes)
            yield Votes(own, entropies, nearest, cache)


def _votes_of(
    keys: Tensor, tokens: Tensor, rows: Tensor, size: int, mixes: Sequence[CacheMix]
) -> tuple[Tensor, Tensor]:
    """`Votes.nearest` and `Votes.cache` of the tokens at `rows`."""
    earlier = torch.arange(max(0, int(rows[0]) - size), int(rows[-1]) + 1)
    ages = (rows[:, None] - earlier).double()
    outside = (ages < 1) | (ages > size)
    cosines = code_cosines(keys[rows], keys[earlier]).masked_fill_(outside, -torch.inf)
    ages.clamp_(min=1)
    same = tokens[rows, None] == tokens[earlier]
    shares = [(mix.scores(cosines, ages).softmax(dim=-1) * same).sum(dim=-1) for mix in mixes]
    # Before the first token of a text there is nothing: no vote, and the least cosine.
    return cosines.amax(dim=-1).clamp(min=-1), torch.stack(shares).nan_to_num(0).log()


def fitted_mix(votes: Votes) -> CacheMix:
    """The best mix for tokens of which `votes` has those by `CANDIDATES`."""
    fitted = (_fit_gate(votes, index) for index in range(len(CANDIDATES)))
    return min(fitted, key=lambda pair: pair[0])[1]


def _fit_gate(votes: Votes, index: int) -> tuple[float, CacheMix]:
    """The loss of a candidate with the gate that makes it lowest, prior included; the candidate."""
    candidate = CANDIDATES[index]
    start = torch.tensor([getattr(candidate, name) for name in GATE], dtype=torch.float64)
    gate = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([gate], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        mix = replace(candidate, **dict(zip(GATE, gate, strict=True)))  # of tensors
        prior = ((gate - start) / GATE_SPREAD).square().sum() / 2
        nats = prior - votes.logprobs(mix, index).sum()
        nats.backward()
        return nats

    optimizer.step(loss)
    values = [round(value, 4) for value in gate.tolist()]
    return loss().item(), replace(candidate, **dict(zip(GATE, values, strict=True)))


def adaptive_losses(
    models: dict[str, LoadedModel],
    data: TokenData,
    parts: dict[str, ScoredPart],
    machine: Machine,
    min_context: int,
    size: int,
) -> dict[str, Any]:
    """The mix, fitted with the first of `models`, and the losses of each with this cache.

    The first tokens of a part find the cache full of the text before it.
    """

    def votes(loaded: LoadedModel, split: str, count: int, mixes: Sequence[CacheMix]) -> Votes:
        context = loaded.config.context
        before = data.preceding(split, size + context)
        lead, cached = np.split(before, [max(1, len(before) - size)])
        tokens = np.concatenate([cached, parts[split].tokens[:count]])
        batches = scored_batches(loaded.model, tokens, lead, machine, min_context)
        every = zip(*count_votes(batches, size, mixes), strict=True)
        return Votes(*(torch.cat(part, dim=-1)[..., len(cached) :] for part in every))

    first, *_ = models.values()
    mix = fitted_mix(votes(first, "val", FIT_TOKENS, CANDIDATES))
    results: dict[str, Any] = {"cache": {"tokens": size} | asdict(mix)}
    for name, loaded in models.items():
        sums = {}
        for split, part in tqdm(parts.items(), desc=f"adaptive {name}", unit="split"):
            logprobs = votes(loaded, split, len(part.tokens), [mix]).logprobs(mix)
            sums[split] = LossSum(-logprobs.sum().item(), len(logprobs), part.bytes)
        results[name] = losses_by_split(sums)
    return results
