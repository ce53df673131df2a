"""The model: a decoder-only transformer with the architecture of Qwen3 or of GPT-2.

Token ids in, next-token logits out, with an optional key/value cache.
Shapes: B sequences, T tokens, W width, H heads, K key/value heads, S head size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import attend
from .fused import QKNormRoPEFunction, RMSNorm, SwiGLUFunction, head_loss


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the model; stored with its weights."""

    arch: str
    """`qwen3` (Qwen3 technical report, arXiv 2505.09388) or `gpt2` (Radford et al. 2019)."""
    vocab_size: int
    context: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    ff_width: int
    tie_embeddings: bool
    dropout: float
    rope_base: float = 10_000.0

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding and the head: a multiple of 64, which speeds up matrix products."""
        return -(-self.vocab_size // 64) * 64


class KVCache:
    """Keys and values of all earlier tokens of a batch of sequences."""

    def __init__(self, config: ModelConfig, batch: int, like: Tensor) -> None:
        shape = (config.layers, batch, config.kv_heads, config.context, config.head_size)
        self.keys = torch.empty(shape, dtype=like.dtype, device=like.device)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add keys and values (B, K, T, S) of a layer; all of them so far, (B, K, L, S)."""
        end = self.length + key.size(2)
        self.keys[layer, :, :, self.length : end] = key
        self.values[layer, :, :, self.length : end] = value
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


CacheAppend = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""`KVCache.append` of one layer."""


def rotary_tables(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary position embedding (Su et al. 2021), each (context, S)."""
    half = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    angles = torch.outer(torch.arange(config.context).float(), config.rope_base**-half)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


class Attention(nn.Module):
    """Multi-head causal self-attention. Qwen3: rotary positions, normed queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.arch == "gpt2"
        self.head_size = config.head_size
        self.split = [config.heads, config.kv_heads, config.kv_heads]
        self.qkv = nn.Linear(config.width, sum(self.split) * config.head_size, bias=bias)
        self.out = nn.Linear(config.heads * config.head_size, config.width, bias=bias)
        if config.arch == "qwen3":
            self.query_norm = RMSNorm(config.head_size)
            self.key_norm = RMSNorm(config.head_size)

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
        heads = attend(query, key, value, mask)  # (B, H, T, S)
        out: Tensor = self.out(heads.transpose(1, 2).flatten(2))
        return out

    def heads(self, x: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, S), keys and values (B, K, T, S) of x (B, T, W)."""
        if rope is not None:
            query, key, value = QKNormRoPEFunction.apply(  # type: ignore[no-untyped-call]
                self.qkv(x), self.query_norm.weight, self.key_norm.weight, *rope, self.split[0]
            )
            return query, key, value
        heads = self.qkv(x).unflatten(2, (-1, self.head_size)).transpose(1, 2)
        query, key, value = heads.split(self.split, dim=1)
        return query, key, value


class SwiGLU(nn.Module):
    """Qwen3's feed-forward layer: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.ff_width, bias=False)
        self.down = nn.Linear(config.ff_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        gated = SwiGLUFunction.apply(self.gate_up(x))  # type: ignore[no-untyped-call]
        out: Tensor = self.down(gated)
        return out


class MLP(nn.Module):
    """GPT-2's feed-forward layer: down(gelu(up(x))), GELU by its tanh approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.width, config.ff_width)
        self.down = nn.Linear(config.ff_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention, then feed-forward; each takes normed input and adds to x (pre-norm residual)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = Attention(config)
        self.feed_forward_norm = make_norm(config)
        self.feed_forward = SwiGLU(config) if config.arch == "qwen3" else MLP(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        append: CacheAppend | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), rope, append, mask))
        added: Tensor = self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return x + added


def make_norm(config: ModelConfig) -> nn.Module:
    """The architecture's norm over a token's vector."""
    return RMSNorm(config.width) if config.arch == "qwen3" else nn.LayerNorm(config.width)


class Transformer(nn.Module):
    """The language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocab, config.width)
        if config.arch == "qwen3":
            cos, sin = rotary_tables(config)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        else:
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.cos: Tensor
        self.sin: Tensor
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.final_norm = make_norm(config)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.width, config.padded_vocab, bias=False)

    def forward(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        targets: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, vocab_size) for the token after each of `tokens` (B, T), int64.

        With a `cache`, `tokens` continue the sequences in it; together they must fit `context`.
        With `targets` (B, T), the mean cross-entropy in nats instead. `segments` (B, T), which
        never decrease along a row, tell texts packed in one row apart: tokens attend within their
        own only, and negative targets do not count.
        """
        states = self.states(tokens, cache, segments)
        if targets is None:
            return self.logits(states)
        rows, size = states.flatten(0, 1), self.config.vocab_size
        packed = segments is not None
        return head_loss(rows, self.head_weight, targets.flatten(), size, partial=packed)

    def states(
        self, tokens: Tensor, cache: KVCache | None = None, segments: Tensor | None = None
    ) -> Tensor:
        """Final states (B, T, W): what the head makes logits of. Arguments as in `forward`."""
        normed: Tensor = self.final_norm(self.hidden(tokens, cache, segments))
        return normed

    def logits(self, states: Tensor) -> Tensor:
        """Logits (B, T, vocab_size) of final states (B, T, W)."""
        # The padding of the vocabulary is never trained and never sampled.
        return F.linear(states, self.head_weight)[..., : self.config.vocab_size]

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix, (padded_vocab, W)."""
        tied = self.config.tie_embeddings
        weight: Tensor = self.token_embedding.weight if tied else self.head.weight
        return weight

    def hidden(
        self,
        tokens: Tensor,
        cache: KVCache | None = None,
        segments: Tensor | None = None,
        depth: int | None = None,
    ) -> Tensor:
        """The residual stream (B, T, W) after the first `depth` blocks, by default after all.

        Takes `tokens`, `cache` and `segments` as `forward` does.
        """
        assert cache is None or segments is None, "a cache holds no segments"
        start = cache.length if cache is not None else 0
        end = start + tokens.size(1)
        assert end <= self.config.context, f"{end} tokens do not fit {self.config.context}"
        x, rope = self.embed(tokens, start, segments), self.rope(start, end)
        mask = None
        if segments is not None:
            mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril()  # (B, T, T)
        for layer, block in enumerate(self.blocks):
            if layer == depth:
                break
            x = block(x, rope, None if cache is None else partial(cache.append, layer), mask)
        if cache is not None:
            cache.length = end
        return x

    def embed(self, tokens: Tensor, start: int, segments: Tensor | None = None) -> Tensor:
        """Embeddings (B, T, W) of tokens (B, T) at positions `start` and on.

        GPT-2's learned positions restart with each of the `segments` (B, T).
        """
        x: Tensor = self.token_embedding(tokens)
        if self.config.arch == "gpt2":
            if segments is None:
                x = x + self.position_embedding.weight[start : start + tokens.size(1)]
            else:
                segment_starts = torch.searchsorted(segments, segments)
                offsets = torch.arange(tokens.size(1), device=tokens.device) - segment_starts
                x = x + self.position_embedding(offsets)
        x = self.dropout(x)
        return x

    def rope(self, start: int, end: int) -> tuple[Tensor, Tensor] | None:
        """Rotary cosines and sines of positions `start` to `end`, each (T, S); None for GPT-2.

        Rotary attention depends on differences of positions only, so segments need no restart.
        """
        if self.config.arch == "gpt2":
            return None
        return self.cos[start:end], self.sin[start:end]

    def block_matrices(self) -> list[tuple[nn.Parameter, list[int]]]:
        """The matrix parameters of the blocks, each with the rows of the matrices stacked in it."""
        size = self.config.head_size
        stacked = {"qkv": [self.config.heads * size] + 2 * [self.config.kv_heads * size]}
        stacked["gate_up"] = 2 * [self.config.ff_width]
        return [
            (parameter, stacked.get(name.split(".")[-2], [parameter.size(0)]))
            for name, parameter in self.blocks.named_parameters()
            if parameter.ndim == 2
        ]

    def parameter_count(self) -> int:
        """Number of trainable values, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())
