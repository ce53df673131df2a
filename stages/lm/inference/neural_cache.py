"""The neural cache (Grave et al. 2017, arXiv 1612.04426): a model that remembers what it just read.

It keeps the last tokens of a text, each with the final state that predicted it. Those whose states
resemble the present one vote for the next token, and the votes are mixed with the model's
probabilities. No weight changes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CODE_LENGTH = 3900
"""Length of the integer vectors that stand for states. Any sum of products of two of them stays
below 2^24, where float32 is exact: cosines have the same bits in any batch, order and thread."""


@dataclass(frozen=True, kw_only=True)
class CacheMix:
    """How the votes are counted, and their share in the probabilities."""

    temperature: float = 0.05
    """Divides the cosine between a remembered state and the present one before the softmax."""
    decay: float = 0.6
    """The vote of the n-th last token is divided by n to this power."""
    bias: float = -11.0
    nearest: float = 12.0
    entropy: float = -0.3
    """The share is the sigmoid of `bias` + `nearest` times the largest cosine + `entropy` times
    that of the model's probabilities, in nats: more where the cache knows the place well."""

    def scores(self, cosines: Tensor, ages: Tensor) -> Tensor:
        """Logits of the votes of remembered tokens, `ages` (1 is the last) tokens ago."""
        return cosines / self.temperature - self.decay * ages.log()

    def log_shares(self, nearest: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
        """Natural logarithms of the cache's and the model's share in the probabilities."""
        logit = self.bias + self.nearest * nearest + self.entropy * entropy
        return F.logsigmoid(logit), F.logsigmoid(-logit)


def state_codes(states: Tensor) -> Tensor:
    """Final states (..., W) as vectors of whole numbers in their directions, float32."""
    return (F.normalize(states.double(), dim=-1) * CODE_LENGTH).round().float()


def code_cosines(queries: Tensor, keys: Tensor) -> Tensor:
    """Cosines (Q, K), float64, between codes (Q, W) and (K, W)."""
    return (queries @ keys.T).double() / CODE_LENGTH**2


class NeuralCache:
    """The last `size` tokens of each sequence of a batch, B, and the states that predicted them."""

    def __init__(self, size: int, batch: int, width: int, mix: CacheMix = CacheMix()) -> None:
        self.size, self.mix = size, mix
        self.keys = torch.empty(batch, size, width)
        self.tokens = torch.empty(batch, size, dtype=torch.int64)
        self.count = 0
        """Tokens that each sequence has put in; the last `size` are kept."""
        self.queries: Tensor | None = None
        """Codes (B, 1, W) of the states that predict the next tokens."""

    def read(self, tokens: list[list[int]], states: Tensor, new: int) -> None:
        """Take in the last `new` tokens of the rows (1 or B) that a decoder was fed.

        `states` (1 or B, T, W) are what it made of the rows.
        """
        batch = len(self.keys)
        codes = state_codes(states[:, -new:].cpu()).expand(batch, -1, -1)
        ids = torch.tensor(tokens)[:, -new:].expand(batch, -1)
        if self.queries is None:  # nothing predicted the first token
            keys, ids = codes[:, :-1], ids[:, 1:]
        else:
            keys = torch.cat((self.queries, codes[:, :-1]), dim=1)
        self.count += ids.size(1)
        keys, ids = keys[:, -self.size :], ids[:, -self.size :]
        slots = torch.arange(self.count - ids.size(1), self.count) % self.size
        self.keys[:, slots], self.tokens[:, slots] = keys, ids
        self.queries = codes[:, -1:]

    def mixed(self, logits: Tensor) -> Tensor:
        """Logits (B, V) of the next tokens, float64, from the model's own (B, V)."""
        if not self.count:
            return logits
        # One by one: a sequence must not depend on the others of its batch.
        return torch.stack([self._mixed(i, row) for i, row in enumerate(logits.double().cpu())])

    def _mixed(self, sequence: int, logits: Tensor) -> Tensor:
        assert self.queries is not None
        used = min(self.count, self.size)
        ages = 1 + (self.count - 1 - torch.arange(used, dtype=torch.float64)) % self.size
        cosines = code_cosines(self.queries[sequence], self.keys[sequence, :used])[0]
        votes = self.mix.scores(cosines, ages).softmax(dim=-1)
        cache = torch.zeros_like(logits).index_add_(0, self.tokens[sequence, :used], votes)
        model = logits.log_softmax(dim=-1)
        entropy = -(model.exp() * model).sum()
        of_cache, of_model = self.mix.log_shares(cosines.max(), entropy)
        mixed = torch.logaddexp(model + of_model, cache.log() + of_cache)
        return mixed + (logits - model)[0]  # on the scale of the model's
