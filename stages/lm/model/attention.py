"""Scaled dot-product attention with grouped key/value heads (Ainslie et al. 2023), causal.

Shapes: B sequences, T query positions, L key positions, H heads, K key/value heads, S head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Causal attention of the last T of L positions: softmax(query key^T / sqrt(S)) value.

    query (B, H, T, S), key and value (B, K, L, S) with L >= T; returns (B, H, T, S). `mask`
    (B, T, L), bool, is True where a query may attend to a key; it must be causal itself.
    """
    if key.size(1) != query.size(1):
        queries_per_key = query.size(1) // key.size(1)
        key, value = (x.repeat_interleave(queries_per_key, dim=1) for x in (key, value))
    length, key_length = query.size(2), key.size(2)
    if query.is_cuda and length == key_length:
        if mask is None:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.scaled_dot_product_attention(query, key, value, mask.unsqueeze(1))
    # On a CPU at short context the two products are faster than the fused operator's backward.
    future = query.new_full((length, key_length), float("-inf")).triu(key_length - length + 1)
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
