"""Quantization schemes that need no calibration: int8, int4 and float16, and their inverse.

Weights are float32 (rows, columns). Every function works on one weight at a time.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZE = 64
"""Columns that share a scale in a row that has several scales."""
WEIGHTS_AT_ONCE = 1 << 17
"""Weights that `quantize_int4` works on at once: they fit a processor's cache."""


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A matrix as integers times scales; each scale is for a run of columns of one row."""

    codes: Tensor
    """int8, (rows, columns)."""
    scales: Tensor
    """float16, (rows, 1) or (rows, columns / GROUP_SIZE)."""

    @property
    def shape(self) -> torch.Size:
        """(rows, columns)."""
        return self.codes.shape

    def __getitem__(self, rows: slice) -> "QuantizedWeight":
        return QuantizedWeight(self.codes[rows], self.scales[rows])


StoredWeight = QuantizedWeight | Tensor
"""A weight of a quantized model: a matrix with codes, or a float16 tensor."""


def quantize_int8(weight: Tensor) -> QuantizedWeight:
    """Symmetric 8-bit codes (rows, columns) with one float16 scale per row: weight ~ code * scale.

    The scale is rounded up to float16 before the codes are computed, so that codes account for
    its rounding and none exceeds 127.
    """
    exact = weight.float().abs().amax(dim=1, keepdim=True) / 127
    scales = exact.clamp(min=2**-24).to(torch.float16)
    infinity = torch.full_like(scales, torch.inf)
    scales = torch.where(scales.float() < exact, torch.nextafter(scales, infinity), scales)
    codes = (weight.float() / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return QuantizedWeight(codes, scales)


def quantize_int4(weight: Tensor) -> QuantizedWeight:
    """4-bit codes with a float16 scale per 64 columns, or per row if columns do not divide by 64.

    The largest weight of a group gets a code near -8, which decides the sign of the scale, as in
    llama.cpp's Q4_0. Of 15 scales around that, the one with the smallest squared error is taken.
    """
    rows, columns = weight.shape
    size = GROUP_SIZE if columns % GROUP_SIZE == 0 else columns
    groups = weight.float().view(-1, size)
    parts = [_int4_groups(part) for part in groups.split(max(1, WEIGHTS_AT_ONCE // size))]
    codes, scales = (torch.cat(each) for each in zip(*parts, strict=True))
    return QuantizedWeight(codes.view(rows, columns), scales.view(rows, -1))


def _int4_groups(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, int8, of groups (groups, columns), and scales (groups, 1)."""
    largest = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True))
    best = torch.full_like(largest, torch.inf)
    scales = torch.zeros_like(largest, dtype=torch.float16)
    for divisor in torch.arange(-10, -6.4, 0.25).tolist():
        tried = nonzero_f16(largest / divisor)
        error = groups.sub(rounded(groups, tried) * tried.float()).square().sum(1, keepdim=True)
        better = error < best
        best, scales = torch.where(better, error, best), torch.where(better, tried, scales)
    return rounded(groups, scales).to(torch.int8), scales


def rounded(weight: Tensor, scales: Tensor) -> Tensor:
    """The 4-bit codes nearest to `weight`, still in float32."""
    return (weight / scales.float()).round_().clamp_(-8, 7)


def nonzero_f16(scales: Tensor) -> Tensor:
    """`scales` in float16, with zero replaced by the smallest positive number."""
    halves = to_f16(scales)
    return torch.where(halves == 0, torch.full_like(halves, 2**-24), halves)


def to_f16(weight: Tensor) -> Tensor:
    """`weight` in float16, clamped to its largest finite number."""
    limit = torch.finfo(torch.float16).max
    return weight.clamp(-limit, limit).to(torch.float16)


def dequantize(weight: StoredWeight) -> Tensor:
    """The float32 weight that is used in computation; the shape stays."""
    if isinstance(weight, Tensor):
        return weight.float()
    groups = weight.codes.view(*weight.scales.shape, -1).float()
    return (groups * weight.scales.float().unsqueeze(2)).view(weight.shape)
