"""Next-token logits of sequences that grow token by token. Knows nothing about text or sampling.

Every decoder is the same function of the same weights to within rounding; `make_decoder` takes the
fastest that works here.
"""

from typing import Protocol

import torch
from torch import Tensor

from .engine import EngineDecoder
from .loading import LoadedModel
from .model import KVCache


class Decoder(Protocol):
    """A batch of sequences of equal length, B, over a vocabulary, V."""

    context: int
    """Tokens a sequence may have."""

    @property
    def length(self) -> int:
        """Tokens each sequence has."""
        ...

    def feed(self, tokens: list[list[int]]) -> Tensor:
        """Lengthen each sequence by its row, all of one length; float32 logits (B, V) after it.

        One row alone is for every sequence. Together with `length` it must fit `context`.
        """
        ...

    def forget(self) -> None:
        """Begin anew with empty sequences."""
        ...


class TorchDecoder:
    """The model itself with a key/value cache: on any device, for any weights."""

    def __init__(self, loaded: LoadedModel, batch: int) -> None:
        self.model = loaded.model
        self.batch = batch
        self.context = loaded.model.config.context
        self.cache = KVCache(loaded.model.config, batch, loaded.model.token_embedding.weight)

    @property
    def length(self) -> int:
        """Tokens each sequence has."""
        return self.cache.length

    @torch.inference_mode()
    def feed(self, tokens: list[list[int]]) -> Tensor:
        """See `Decoder`."""
        rows = torch.tensor(tokens, device=self.model.token_embedding.weight.device)
        return self.model(rows.expand(self.batch, -1), self.cache)[:, -1].float()

    def forget(self) -> None:
        """See `Decoder`."""
        self.cache.length = 0


def make_decoder(loaded: LoadedModel, batch: int = 1) -> Decoder:
    """A decoder of empty sequences. It belongs to the caller; `loaded` may serve many."""
    if loaded.engine is not None:
        return EngineDecoder(loaded.engine, batch)
    return TorchDecoder(loaded, batch)
