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
from .neural_cache import NeuralCache
from .token_step import TokenStep


class Decoder(Protocol):
    """A batch of sequences of equal length, B, over a vocabulary, V."""

    context: int
    """Tokens a sequence may have."""
    splits_freely: bool
    """Tokens give the same bits fed at once and one by one."""
    states: Tensor
    """Final states (1 or B, T, width) of the rows that were fed last, if they are kept."""

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
    states: Tensor

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
            self.states, logits = self._read(rows, first)
            for cache in others:
                cache.keys, cache.values = first.keys.clone(), first.values.clone()
                cache.length = first.length
            return logits.expand(len(self.caches), -1)
        pairs = zip(rows.expand(len(self.caches), -1), self.caches, strict=True)
        read = (self._read(row[None], cache) for row, cache in pairs)
        self.states, logits = map(torch.cat, zip(*read, strict=True))
        return logits

    def _read(self, row: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Append tokens (1, T) to a sequence: their final states (1, T, width), logits (1, V)."""
        states = self.model.states(row, cache)
        return states, self.model.logits(states)[:, -1].float()

    def reset(self) -> None:
        """See `Decoder`."""
        for cache in self.caches:
            cache.length = 0


class PackedDecoder(TorchDecoder):
    """A `TorchDecoder` that computes single tokens with a `TokenStep`."""

    def __init__(self, loaded: LoadedModel, batch: int, step: TokenStep) -> None:
        super().__init__(loaded, batch)
        self.step = step

    def _read(self, row: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        if not cache.length or row.size(1) > 1:
            return super()._read(row, cache)
        state, logits = self.step(int(row), cache)
        return state[None], logits


def make_decoder(loaded: LoadedModel, batch: int = 1, keep_states: bool = False) -> Decoder:
    """A new decoder of `batch` empty sequences. Many may share `loaded`."""
    if loaded.engine is not None:
        return EngineDecoder(loaded.engine, batch, keep_states)
    if loaded.token_step is not None:
        return PackedDecoder(loaded, batch, loaded.token_step)
    return TorchDecoder(loaded, batch)


class ContextWindow:
    """A decoder's sequences without the tokens that no longer fit its context.

    When they exceed it, their older half is dropped and the rest is read anew. What the decoder is
    fed, and so every bit of the logits, does not depend on when they are asked for. With a neural
    `cache`, all of a long prompt that fits it is read, in overlapping windows.
    """

    def __init__(
        self, decoder: Decoder, prompt: list[int], cache: NeuralCache | None = None
    ) -> None:
        self.decoder, self.cache = decoder, cache
        context, half = decoder.context, decoder.context // 2
        if len(prompt) > context:
            prompt = prompt[-(half + (cache.size if cache else 0)) :]
        self._start([prompt[:context]], min(len(prompt), context))
        for start in range(context - half, len(prompt) - half, context - half):
            self.logits()
            window = prompt[start : start + context]
            self._start([window], len(window) - half)

    def _start(self, rows: list[list[int]], new: int) -> None:
        """Replace the sequences by `rows`, whose last `new` tokens the cache has not seen."""
        self.rows = rows
        self.unread = [(rows, new)]
        if self.decoder.length:
            self.decoder.reset()

    def append(self, tokens: list[int]) -> None:
        """Append a token to each sequence; a single one is appended to every sequence."""
        rows = self.rows * (len(tokens) // len(self.rows))
        rows = [[*row, token] for row, token in zip(rows, tokens, strict=True)]
        if len(rows[0]) <= self.decoder.context:
            self.rows = rows
            self.unread.append(([[token] for token in tokens], 1))
            return
        if self.cache and self.unread:
            self.logits()  # the cache takes in what is dropped
        self._start([row[-(self.decoder.context // 2) :] for row in rows], 1)

    def logits(self) -> Tensor:
        """Logits (B, V) after the tokens; some must have been appended since the last."""
        if self.decoder.splits_freely:
            parts, counts = zip(*self.unread, strict=True)
            rows = [[*chain(*each)] for each in zip(*parts, strict=True)]
            self.unread = [(rows, sum(counts))]
        for rows, new in self.unread:
            logits = self.decoder.feed(rows)
            if self.cache:
                self.cache.read(rows, self.decoder.states, new)
        self.unread = []
        return self.cache.mixed(logits) if self.cache else logits
