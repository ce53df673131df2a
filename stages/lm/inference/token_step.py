"""A quantized model's forward pass for one token, with torch's kernels for packed weights.

The fallback without the C engine: it reads a quarter of the float32 model's bytes. The result is
that of `Transformer` up to the rounding of activations to bf16.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.attention import KVCache
from ..model.config import ModelConfig
from ..model.rope import rotary_tables
from ..quantization.schemes import GROUP_SIZE, QuantizedWeight, StoredWeight, dequantize

Function = Callable[[Tensor], Tensor]


def make_token_step(config: ModelConfig, weights: dict[str, StoredWeight]) -> "TokenStep | None":
    """A `TokenStep` of weights, by their names in `Transformer`; None where it would not help.

    That is where torch's kernels for packed weights are not vectorised (no AVX, or built by
    Microsoft's compiler), or where matrices without codes would be in memory twice.
    """
    fast = torch.backends.cpu.get_cpu_capability().startswith("AVX") and sys.platform != "win32"
    plain = (
        weight.ndim == 2 and not name.endswith("embedding.weight")
        for name, weight in weights.items()
        if isinstance(weight, Tensor)
    )
    return TokenStep(config, weights) if fast and not any(plain) else None


class BlockFunctions(NamedTuple):
    """The functions of one block, of vectors (1, columns)."""

    attention_norm: Function
    qkv: Function
    heads_norm: Function
    """Of query and key heads (heads + kv_heads, head_size)."""
    out: Function
    attention_post_norm: Function
    feed_forward_norm: Function
    up: Function
    down: Function
    feed_forward_post_norm: Function


class TokenStep:
    """A quantized model for one token at a time; immutable."""

    def __init__(self, config: ModelConfig, weights: dict[str, StoredWeight]) -> None:
        self.config = config
        self.weights = weights
        rotated = [n for n in range(config.layers) if config.rotated(n)]
        self.gated = config.family.activation != "gelu"
        tables = {local: self._rope(local) for local in {config.window(n) > 0 for n in rotated}}
        self.rope = {n: tables[config.window(n) > 0] for n in rotated}
        self.layers = [self._layer(f"blocks.{index}") for index in range(config.layers)]
        self.final_norm = self._norm("final_norm")
        self.head = self._product("token_embedding" if config.tie_embeddings else "head")

    def __call__(self, token: int, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Append a token to the only sequence of a float32 `cache`.

        Returns its final state (1, width) and the logits (1, vocab_size).
        """
        config, position = self.config, cache.length
        rotated_heads = config.heads + config.kv_heads
        x = self._row("token_embedding", token)
        if config.family.scaled_embedding:
            x = x * config.width**0.5
        if config.family.learned_positions:
            x = x + self._row("position_embedding", position)
        for number, layer in enumerate(self.layers):
            heads = layer.qkv(layer.attention_norm(x)).view(-1, config.head_size)
            rotated, values = layer.heads_norm(heads[:rotated_heads]), heads[rotated_heads:]
            if number in self.rope:
                cosines, sines = (table[position] for table in self.rope[number])
                swapped = rotated.roll(config.head_size // 2, dims=1)
                rotated = torch.addcmul(rotated * cosines, swapped, sines)
            queries = rotated[: config.heads].view(config.kv_heads, -1, config.head_size)
            key, value = rotated[config.heads :, None], values[:, None]
            keys, values = (each[0] for each in cache.append(number, key[None], value[None]))
            if window := config.window(number):
                keys, values = keys[:, -window:], values[:, -window:]
            attention = torch.bmm(queries, keys.mT).mul_(config.head_size**-0.5).softmax(dim=-1)
            attended = layer.out(torch.bmm(attention, values).view(1, -1))
            x = x + layer.attention_post_norm(attended)
            inner = layer.up(layer.feed_forward_norm(x))
            if self.gated:
                gate, inner = inner.chunk(2, dim=1)
                inner = self._activation(gate) * inner
            else:
                inner = self._activation(inner)
            x = x + layer.feed_forward_post_norm(layer.down(inner))
        cache.length += 1
        state = self.final_norm(x)
        return state, self.head(state)[:, : config.vocab_size]

    def _activation(self, x: Tensor) -> Tensor:
        if self.config.family.activation == "swiglu":
            return F.silu(x)
        return F.gelu(x, approximate="tanh")

    def _rope(self, local: bool) -> tuple[Tensor, Tensor]:
        """Cosines and sines, (context, head_size), the first half of the sines negative."""
        cosines, sines = rotary_tables(self.config, local=local)
        half = self.config.head_size // 2
        return cosines, torch.cat((-sines[:, :half], sines[:, half:]), dim=1)

    def _layer(self, block: str) -> BlockFunctions:
        return BlockFunctions(
            self._norm(f"{block}.attention_norm"),
            self._product(f"{block}.attention.qkv"),
            self._heads_norm(f"{block}.attention"),
            self._product(f"{block}.attention.out"),
            self._norm(f"{block}.attention_post_norm"),
            self._norm(f"{block}.feed_forward_norm"),
            self._product(f"{block}.feed_forward.{'gate_up' if self.gated else 'up'}"),
            self._product(f"{block}.feed_forward.down"),
            self._norm(f"{block}.feed_forward_post_norm"),
        )

    def _heads_norm(self, attention: str) -> Function:
        if not (kind := self.config.family.qk_norm):
            return same
        counts = self.config.heads, self.config.kv_heads
        query, key = (self._values(f"{attention}.{name}_norm.weight") for name in ("query", "key"))
        norm = partial(rms_norm, eps=self.config.norm_eps)
        if kind == "head":
            return norm(torch.cat((query.expand(counts[0], -1), key.expand(counts[1], -1))))
        of_query, of_key = norm(query), norm(key)

        def of_layer(heads: Tensor) -> Tensor:
            queries, keys = heads.split(counts)
            normed = of_query(queries.flatten()), of_key(keys.flatten())
            return torch.cat(normed).view(heads.shape)

        return of_layer

    def _values(self, name: str) -> Tensor:
        return dequantize(self.weights[name])

    def _row(self, table: str, row: int) -> Tensor:
        return dequantize(self.weights[f"{table}.weight"][row : row + 1])

    def _norm(self, name: str) -> Function:
        if f"{name}.weight" not in self.weights:
            return same
        weight, eps = self._values(f"{name}.weight"), self.config.norm_eps
        if not self.config.family.layer_norm:
            return rms_norm(weight, eps)
        bias = self._values(f"{name}.bias")
        return lambda x: F.layer_norm(x, weight.shape, weight, bias, eps)

    def _product(self, name: str) -> Function:
        product = packed_product(self.weights[f"{name}.weight"])
        if f"{name}.bias" not in self.weights:
            return product
        bias = self._values(f"{name}.bias")
        return lambda x: product(x).add_(bias)


def same(x: Tensor) -> Tensor:
    """In the place of a norm that the family does not have."""
    return x


def rms_norm(weight: Tensor, eps: float) -> Function:
    """`RMSNorm` in few torch calls."""
    return lambda x: x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt_() * weight


def packed_product(weight: StoredWeight) -> Function:
    """(1, columns) -> (1, rows), both float32, with the fastest kernel of torch that fits."""
    if isinstance(weight, QuantizedWeight):
        codes, scales = weight.codes, weight.scales
        rows, columns = codes.shape
        # The kernels read whole vectors, beyond the end of other shapes.
        whole = rows % 16 == 0 and columns % GROUP_SIZE == 0
        if whole and scales.size(1) == 1:
            row_scales = scales.flatten().to(torch.bfloat16)
            return lambda x: torch._weight_int8pack_mm(
                x.to(torch.bfloat16), codes, row_scales
            ).float()
        if whole and int(codes.min()) >= -8 and int(codes.max()) < 8:
            packed = torch._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
            with_zeros = torch.stack((scales.T, torch.zeros_like(scales.T)), dim=2)
            with_zeros = with_zeros.to(torch.bfloat16).contiguous()
            return lambda x: torch._weight_int4pack_mm_for_cpu(
                x.to(torch.bfloat16), packed, GROUP_SIZE, with_zeros
            ).float()
    exact = dequantize(weight)
    return lambda x: F.linear(x, exact)
