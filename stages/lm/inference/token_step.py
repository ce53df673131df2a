"""A quantized model's forward pass for one token, with torch's kernels for packed weights.

The fallback without the C engine: it reads a quarter of the float32 model's bytes. The result is
that of `Transformer` up to the rounding of activations to bf16.
"""

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model.transformer import KVCache, ModelConfig, rotary_tables
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
    """The functions of one block, of vectors (1, columns); `heads_norm` takes query and key heads
    (heads + kv_heads, head_size) and is None for GPT-2."""

    attention_norm: Function
    qkv: Function
    heads_norm: Function | None
    out: Function
    feed_forward_norm: Function
    up: Function
    down: Function


class TokenStep:
    """A quantized model for one token at a time; immutable."""

    def __init__(self, config: ModelConfig, weights: dict[str, StoredWeight]) -> None:
        self.config = config
        self.weights = weights
        self.layers = [self._layer(f"blocks.{index}") for index in range(config.layers)]
        self.final_norm = self._norm("final_norm")
        self.head = self._product("token_embedding" if config.tie_embeddings else "head")
        if config.arch == "qwen3":
            self.cosines, sines = rotary_tables(config)
            half = config.head_size // 2
            self.sines = torch.cat((-sines[:, :half], sines[:, half:]), dim=1)

    def __call__(self, token: int, cache: KVCache) -> tuple[Tensor, Tensor]:
        """Append a token to the only sequence of a float32 `cache`.

        Returns its final state (1, width) and the logits (1, vocab_size).
        """
        config, position = self.config, cache.length
        rotated_heads = config.heads + config.kv_heads
        rotate = config.arch == "qwen3"
        x = self._row("token_embedding", token)
        if rotate:
            cosines, sines = self.cosines[position], self.sines[position]
        else:
            x = x + self._row("position_embedding", position)
        for number, layer in enumerate(self.layers):
            heads = layer.qkv(layer.attention_norm(x)).view(-1, config.head_size)
            rotated, values = heads[:rotated_heads], heads[rotated_heads:]
            if layer.heads_norm:
                rotated = layer.heads_norm(rotated)
                swapped = rotated.roll(config.head_size // 2, dims=1)
                rotated = torch.addcmul(rotated * cosines, swapped, sines)
            queries = rotated[: config.heads].view(config.kv_heads, -1, config.head_size)
            key, value = rotated[config.heads :, None], values[:, None]
            keys, values = cache.append(number, key[None], value[None])
            attention = torch.bmm(queries, keys[0].mT).mul_(config.head_size**-0.5).softmax(dim=-1)
            x = x + layer.out(torch.bmm(attention, values[0]).view(1, -1))
            inner = layer.up(layer.feed_forward_norm(x))
            if rotate:
                gate, inner = inner.chunk(2, dim=1)
                inner = F.silu(gate).mul_(inner)
            else:
                inner = F.gelu(inner, approximate="tanh")
            x = x + layer.down(inner)
        cache.length += 1
        state = self.final_norm(x)
        return state, self.head(state)[:, : config.vocab_size]

    def _layer(self, block: str) -> BlockFunctions:
        qwen3 = self.config.arch == "qwen3"
        heads_norm = None
        if qwen3:
            query, key = (
                self._values(f"{block}.attention.{name}_norm.weight") for name in ("query", "key")
            )
            rows = query.expand(self.config.heads, -1), key.expand(self.config.kv_heads, -1)
            heads_norm = rms_norm(torch.cat(rows))
        return BlockFunctions(
            self._norm(f"{block}.attention_norm"),
            self._product(f"{block}.attention.qkv"),
            heads_norm,
            self._product(f"{block}.attention.out"),
            self._norm(f"{block}.feed_forward_norm"),
            self._product(f"{block}.feed_forward.{'gate_up' if qwen3 else 'up'}"),
            self._product(f"{block}.feed_forward.down"),
        )

    def _values(self, name: str) -> Tensor:
        return dequantize(self.weights[name])

    def _row(self, table: str, row: int) -> Tensor:
        return dequantize(self.weights[f"{table}.weight"][row : row + 1])

    def _norm(self, name: str) -> Function:
        weight = self._values(f"{name}.weight")
        if self.config.arch == "qwen3":
            return rms_norm(weight)
        bias = self._values(f"{name}.bias")
        return lambda x: F.layer_norm(x, weight.shape, weight, bias)

    def _product(self, name: str) -> Function:
        product = packed_product(self.weights[f"{name}.weight"])
        if f"{name}.bias" not in self.weights:
            return product
        bias = self._values(f"{name}.bias")
        return lambda x: product(x).add_(bias)


def rms_norm(weight: Tensor) -> Function:
    """`RMSNorm` in few torch calls."""
    return lambda x: x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt_() * weight


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
