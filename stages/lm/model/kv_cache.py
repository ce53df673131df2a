"""Keys and values of the tokens that a model has already read."""

import typing
from dataclasses import dataclass

import torch
from torch import Tensor

if typing.TYPE_CHECKING:
    from .transformer import ModelConfig


class KVCache:
    """Keys and values of the tokens one batch of sequences has seen so far."""

    def __init__(self, config: "ModelConfig", batch: int, like: Tensor) -> None:
        """For `batch` sequences of up to `context` tokens, with the type and device of `like`."""
        shape = (config.layers, batch, config.kv_heads, config.context, config.head_size)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0
        """Tokens in it; the model moves it on when all layers have appended."""

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer."""
        return LayerCache(self, index)


@dataclass(frozen=True)
class LayerCache:
    """One layer of a `KVCache`."""

    cache: KVCache
    index: int

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, S); returns all of the layer's keys and values so far, (B, K, L, S)."""
        start = self.cache.length
        end = start + key.size(2)
        keys, values = self.cache.keys[self.index], self.cache.values[self.index]
        keys[:, :, start:end] = key
        values[:, :, start:end] = value
        return keys[:, :, :end], values[:, :, :end]
