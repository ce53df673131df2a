"""Causal self-attention with grouped key/value heads (Ainslie et al. 2023), and its cache.

Shapes: B sequences, T query positions, L key positions, H heads, K key/value heads, S head size,
W width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .fused import QKNormRoPEFunction
from .layers import RMSNorm

CACHE_START = 256
"""Tokens that a cache has room for at first; it doubles as needed."""


class KVCache:
    """Keys and values of all earlier tokens of a batch of sequences."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        self.context = config.context
        shape = (config.layers, batch, config.kv_heads, 0, config.head_size)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens."""
        room = self.keys.size(3)
        if length <= room:
            return
        room = min(self.context, max(CACHE_START, 2 * room, length))
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty((*old.shape[:3], room, old.size(4)))
            new[..., : self.length, :] = old[..., : self.length, :]
            setattr(self, name, new)

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, K, T, S) of a layer; all of them so far, (B, K, L, S)."""
        end = self.length + key.size(2)
        self.reserve(end)
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


CacheAppend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`KVCache.append` of one layer."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, window: int = 0
) -> Tensor:
    """Causal attention of the last T of L positions: softmax(query key^T / sqrt(S)) value.

    query (B, H, T, S), key and value (B, K, L, S) with L >= T; returns (B, H, T, S). `mask`
    (B, T, L), bool, is True where a query may attend to a key; it must be causal itself. With a
    `window`, a query attends to the last so many positions only, its own included.
    """
    if key.size(1) != query.size(1):
        queries_per_key = query.size(1) // key.size(1)
        key, value = (x.repeat_interleave(queries_per_key, dim=1) for x in (key, value))
    length, key_length = query.size(2), key.size(2)
    first = key_length - length  # position of the first query
    windowed = 0 < window < key_length
    if query.is_cuda and length == key_length:
        if mask is None and not windowed:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        if windowed:
            near = query.new_ones((length, length), dtype=torch.bool).tril().triu(1 - window)
            mask = near[None] if mask is None else mask & near
        assert mask is not None
        return F.scaled_dot_product_attention(query, key, value, mask.unsqueeze(1))
    # On a CPU at short context the two products are faster than the fused operator's backward.
    hidden = query.new_full((length, key_length), float("-inf"))
    future = hidden.triu(first + 1)
    if windowed:
        future += hidden.tril(first - window)
    batch, heads, _, size = query.shape
    scores = torch.baddbmm(
        future,
        query.reshape(batch * heads, length, size),
        key.reshape(batch * heads, key_length, size).mT,
        alpha=size**-0.5,
    )
    if mask is not None:
        scores.view(batch, heads, length, key_length).masked_fill_(
            ~mask.unsqueeze(1), float("-inf")
        )
    out = torch.bmm(scores.softmax(dim=-1), value.reshape(batch * heads, key_length, size))
    return out.view(batch, heads, length, size)


class Attention(nn.Module):
    """Multi-head causal self-attention of one layer."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        family, size = config.family, config.head_size
        self.head_size, self.norm_eps = size, config.norm_eps
        self.window, self.qk_norm = config.window(layer), family.qk_norm
        self.split = [config.heads, config.kv_heads, config.kv_heads]
        self.qkv = nn.Linear(config.width, sum(self.split) * size, bias=family.qkv_bias)
        self.out = nn.Linear(config.heads * size, config.width, bias=family.bias)
        if self.qk_norm:
            of_layer = self.qk_norm == "layer"
            self.query_norm = RMSNorm(size * config.heads if of_layer else size, config.norm_eps)
            self.key_norm = RMSNorm(size * config.kv_heads if of_layer else size, config.norm_eps)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        append: CacheAppend | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        query, key, value = self.heads(x, rope)
        if append is not None:
            key, value = append(key, value)
        heads = attend(query, key, value, mask, self.window)  # (B, H, T, S)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, S), keys and values (B, K, T, S) of x (B, T, W).

        `rope` holds the cosines and sines (T, S) that rotate them; None: they are not rotated.
        """
        qkv = self.qkv(x)
        if self.qk_norm == "layer":
            query, key, value = qkv.split([count * self.head_size for count in self.split], dim=2)
            qkv = torch.cat((self.query_norm(query), self.key_norm(key), value), dim=2)
        if rope is not None:
            norms = (self.query_norm, self.key_norm) if self.qk_norm == "head" else ()
            weights = [norm.weight for norm in norms] or (None, None)
            query, key, value = QKNormRoPEFunction.apply(  # type: ignore[no-untyped-call]
                qkv, *weights, *rope, self.split[0], self.norm_eps
            )
            return query, key, value
        heads = qkv.unflatten(2, (-1, self.head_size)).transpose(1, 2)
        query, key, value = heads.split(self.split, dim=1)
        return query, key, value
