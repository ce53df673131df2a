"""Next-token logits of a batch of sequences that grow token by token.

All decoders compute the same function of the weights up to rounding; `make_decoder` takes the
fastest that this machine and model allow.
"""

from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from ..model.attention import KVCache
from .engine import EngineDecoder
from .loading import LoadedModel
from .token_step import TokenStep


class Decoder(Protocol):
    """A batch of sequences of equal length, B, over a vocabulary, V."""

    context: int
    """Tokens a sequence may have."""
    splits_freely: bool
    """Tokens give the same bits fed at once and one by one."""

    @property
    def length(self) -> int:
        """Tokens each sequence has."""
        ...

    def feed(self, tokens: list[list[int]]) -> Tensor:
        """Append a row of token ids to each sequence; float32 logits (B, V) after the last.

        All rows have one length. A single row is appended to every sequence. The sequences must
        not become longer than `context`.
        """
        ...

    def reset(self) -> None:
        """Empty all sequences."""
        ...


class TorchDecoder:
    """The torch model with key/value caches, for any device and weights.

    Sequences are computed one by one: a product of several rows rounds differently from that of a
    single row, and a sequence must not depend on the others of its batch.
    """

    splits_freely = False

    def __init__(self, loaded: LoadedModel, batch: int) -> None:
        self.model = loaded.model
        self.context = loaded.config.context
        like = loaded.model.token_embedding.weight
        self.caches = [KVCache(loaded.config, 1, like) for _ in range(batch)]

    @property
    def length(self) -> int:
        """Tokens each sequence has."""
        return self.caches[0].length

    @torch.inference_mode()
    def feed(self, tokens: list[list[int]]) -> Tensor:
        """See `Decoder`."""
        rows = torch.tensor(tokens, device=self.model.token_embedding.weight.device)
        first, *others = self.caches
        if len(tokens) == 1 and not self.length:  # a prompt that all sequences share is read once
            logits: Tensor = self.model(rows, first)[:, -1].float()
            for cache in others:
                cache.keys, cache.values = first.keys.clone(), first.values.clone()
                cache.length = first.length
            return logits.expand(len(self.caches), -1)
        pairs = zip(rows.expand(len(self.caches), -1), self.caches, strict=True)
        return torch.cat([self.model(row[None], cache)[:, -1] for row, cache in pairs]).float()

    def reset(self) -> None:
        """See `Decoder`."""
        for cache in self.caches:
            cache.length = 0


class PackedDecoder(TorchDecoder):
    """A `TorchDecoder` that computes single tokens with a `TokenStep`."""

    def __init__(self, loaded: LoadedModel, batch: int, step: TokenStep) -> None:
        super().__init__(loaded, batch)
        self.step = step

    @torch.inference_mode()
    def feed(self, tokens: list[list[int]]) -> Tensor:
        """See `Decoder`."""
        if not self.length or len(tokens[0]) > 1:
            return super().feed(tokens)
        rows = tokens if len(tokens) > 1 else tokens * len(self.caches)
        pairs = zip(rows, self.caches, strict=True)
        return torch.cat([self.step(row[0], cache) for row, cache in pairs])


def make_decoder(loaded: LoadedModel, batch: int = 1) -> Decoder:
    """A new decoder of `batch` empty sequences. Many may share `loaded`."""
    if loaded.engine is not None:
        return EngineDecoder(loaded.engine, batch)
    if loaded.token_step is not None:
        return PackedDecoder(loaded, batch, loaded.token_step)
    return TorchDecoder(loaded, batch)


class ContextWindow:
    """A decoder's sequences without the tokens that no longer fit its context.

    When they exceed it, their older half is dropped and the cache is recomputed from the rest. What
    the decoder is fed, and so every bit of the logits, does not depend on when they are asked for.
    """

    def __init__(self, decoder: Decoder, prompt: list[int]) -> None:
        self.decoder = decoder
        fits = len(prompt) <= decoder.context
        self.rows = [prompt if fits else prompt[-(decoder.context // 2) :]]
        self.unread = [self.rows]

    def append(self, tokens: list[int]) -> None:
        """Append a token to each sequence; a single one is appended to every sequence."""
        rows = self.rows * (len(tokens) // len(self.rows))
        self.rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        if len(self.rows[0]) <= self.decoder.context:
            self.unread.append([[token] for token in tokens])
            return
        self.rows = [row[-(self.decoder.context // 2) :] for row in self.rows]
        self.unread = [self.rows]
        self.decoder.reset()

    def logits(self) -> Tensor:
        """Float32 logits (B, V) after the tokens; some must have been appended since the last."""
        if self.decoder.splits_freely:
            self.unread = [[[*chain(*parts)] for parts in zip(*self.unread, strict=True)]]
        for rows in self.unread:
            logits = self.decoder.feed(rows)
        self.unread = []
        return logits
