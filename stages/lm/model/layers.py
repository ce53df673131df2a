"""Norms and feed-forward layers. Shapes: B sequences, T tokens, W width, F feed-forward width."""

import torch.nn.functional as F
from torch import Tensor, nn

from .config import ModelConfig
from .fused import RMSNormFunction, SwiGLUFunction, product_dtype


class RMSNorm(nn.RMSNorm):
    """Scale each vector to unit root mean square (Zhang & Sennrich 2019), in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as `x`, in the data type of the matrix product that follows."""
        normed: Tensor = RMSNormFunction.apply(  # type: ignore[no-untyped-call]
            x.to(self.weight.dtype), self.weight, self.eps, product_dtype(x)
        )
        return normed


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """The family's norm over vectors of `size`."""
    kind = nn.LayerNorm if config.family.layer_norm else RMSNorm
    return kind(size, eps=config.norm_eps)


class GatedFeedForward(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020), act being SiLU or, in GeGLU, tanh-GELU."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.family.bias
        self.gelu = config.family.activation == "geglu"
        self.gate_up = nn.Linear(config.width, 2 * config.ff_width, bias=bias)
        self.down = nn.Linear(config.ff_width, config.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        both = self.gate_up(x)
        if self.gelu:
            gate, up = both.chunk(2, dim=-1)
            gated = F.gelu(gate, approximate="tanh") * up
        else:
            gated = SwiGLUFunction.apply(both)  # type: ignore[no-untyped-call]
        out: Tensor = self.down(gated)
        return out


class MLP(nn.Module):
    """GPT-2's feed-forward layer: down(gelu(up(x))), GELU by its tanh approximation."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.family.bias
        self.up = nn.Linear(config.width, config.ff_width, bias=bias)
        self.down = nn.Linear(config.ff_width, config.width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        out: Tensor = self.down(F.gelu(self.up(x), approximate="tanh"))
        return out
