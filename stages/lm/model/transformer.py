"""The model: a decoder-only transformer of one of the families in `config.py`.

Token ids in, next-token logits out, with an optional key/value cache.
Shapes: B sequences, T tokens, W width, S head size.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, CacheAppend, KVCache
from .config import ModelConfig
from .fused import head_loss
from .layers import MLP, GatedFeedForward, make_norm
from .rope import rotary_tables


class Block(nn.Module):
    """Attention, then feed-forward; each adds to x. The family says what is normed."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        family = config.family

        def norm(used: bool) -> nn.Module:
            return make_norm(config, config.width) if used else nn.Identity()

        self.attention_norm = norm(family.pre_norm)
        self.attention = Attention(config, layer)
        self.attention_post_norm = norm(family.post_norm)
        self.feed_forward_norm = norm(family.pre_norm)
        self.feed_forward = (MLP if family.activation == "gelu" else GatedFeedForward)(config)
        self.feed_forward_post_norm = norm(family.post_norm)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor] | None,
        append: CacheAppend | None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        added: Tensor = self.attention(self.attention_norm(x), rope, append, mask)
        x = x + self.dropout(self.attention_post_norm(added))
        added = self.feed_forward(self.feed_forward_norm(x))
        x = x + self.dropout(self.feed_forward_post_norm(added))
        return x


class Transformer(nn.Module):
    """The language model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.padded_vocab, config.width)
        if config.family.learned_positions:
            self.position_embedding = nn.Embedding(config.context, config.width)
        else:
            self.make_rotary_tables()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.final_norm = make_norm(config, config.width)
        if not config.tie_embeddings:
            self.head = nn.Linear(config.width, config.padded_vocab, bias=False)

    def make_rotary_tables(self) -> None:
        """Compute the cosines and sines of `rope`, which are not stored with the weights."""
        names = {"": False} | ({"local_": True} if self.config.family.local_rope_base else {})
        for prefix, local in names.items():
            cos, sin = rotary_tables(self.config, local=local)
            self.register_buffer(f"{prefix}cos", cos, persistent=False)
            self.register_buffer(f"{prefix}sin", sin, persistent=False)

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
        x = self.embed(tokens, start, segments)
        mask = None
        if segments is not None:
            mask = (segments.unsqueeze(2) == segments.unsqueeze(1)).tril()  # (B, T, T)
        for layer, block in enumerate(self.blocks):
            if layer == depth:
                break
            append = None if cache is None else partial(cache.append, layer)
            x = block(x, self.rope(layer, start, end), append, mask)
        if cache is not None:
            cache.length = end
        return x

    def embed(self, tokens: Tensor, start: int, segments: Tensor | None = None) -> Tensor:
        """Embeddings (B, T, W) of tokens (B, T) at positions `start` and on.

        Learned positions restart with each of the `segments` (B, T).
        """
        x: Tensor = self.token_embedding(tokens)
        if self.config.family.scaled_embedding:
            x = x * self.config.width**0.5
        if self.config.family.learned_positions:
            if segments is None:
                x = x + self.position_embedding.weight[start : start + tokens.size(1)]
            else:
                segment_starts = torch.searchsorted(segments, segments)
                offsets = torch.arange(tokens.size(1), device=tokens.device) - segment_starts
                x = x + self.position_embedding(offsets)
        x = self.dropout(x)
        return x

    def rope(self, layer: int, start: int, end: int) -> tuple[Tensor, Tensor] | None:
        """Rotary cosines and sines of positions `start` to `end` in a layer, each (T, S).

        None where the layer does not rotate. Rotary attention depends on differences of positions
        only, so segments need no restart.
        """
        config = self.config
        if not config.rotated(layer):
            return None
        local = config.family.local_rope_base and config.window(layer)
        cos, sin = (self.get_buffer(f"{'local_' * bool(local)}{name}") for name in ("cos", "sin"))
        return cos[start:end], sin[start:end]

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
