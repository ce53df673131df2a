"""GPTQ: codes of few bits per weight, chosen on calibration text to change the loss little.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds a matrix column by column and adjusts the
remaining columns to compensate for each error. Rows to which the loss is more sensitive get smaller
scales. An entropy coder stores frequent codes in fewer bits (entropy-coded scalar quantization,
Gish & Pierce 1968), so the average bits per weight need not be an integer.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.scoring import windows_at_once
from ..model.transformer import Transformer
from .rans import runs_by_scale
from .schemes import QuantizedWeight

DAMPING = 0.01
"""Added to the Hessian's diagonal, as a share of its mean, so that it can be inverted."""
BLOCK = 64
"""Columns rounded before their errors are applied to all later columns in one product."""
MIN_IMPORTANCE = 0.1
"""Row importances are clamped to [0.1, 10] times their mean; the quadratic loss model holds for
small errors only."""
NARROW = 8.5
"""A matrix whose weights are all at most this many scales gets codes in -8 ... 7. GPTQ compensates
for what is clipped there."""
WIDE = 127
"""Largest absolute code of the other matrices. Rare large codes cost little once coded."""
SCALES_PER_OCTAVE = 8
"""Scales are powers of 2^(1/8), so that they too compress well."""
ROWS = 1 << 10
"""Rows of a matrix rounded together, so that a block of their columns fits a processor's cache."""
SAMPLED = 1 << 24
"""Weights, about, that the distribution of codes is estimated on; of larger models not all rows."""
BATCH = 16
"""Windows in one pass of calibration; fewer if the vocabulary is large."""


@dataclass(frozen=True)
class Calibration:
    """Statistics of a model's matrices on calibration text, by their names."""

    inputs: dict[str, Tensor]
    """E[x x^T] of each matrix's inputs x, (columns, columns); none for lookup tables."""
    gradients: dict[str, Tensor]
    """E[(d loss / d y)^2] of each row's output y for a token, (rows,)."""


def calibrate(model: Transformer, windows: Tensor, frequencies: Tensor) -> Calibration:
    """Run the model on `windows` (B, T + 1) of training text, forward and backward.

    `frequencies` (padded vocabulary) is the share of each token in the text.
    """
    inputs: dict[str, Tensor] = {}
    gradients: dict[str, Tensor] = {}
    count = windows[:, 1:].numel()

    def add(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
        sums[name] = sums.get(name, 0) + value / count

    def watch(name: str, x: Tensor, y: Tensor) -> None:
        flat = x.detach().flatten(0, 1)
        add(inputs, name, flat.T @ flat)
        y.register_hook(lambda grad: add(gradients, name, grad.square().sum((0, 1))))

    def watch_embedding(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        x = inputs[0].detach().requires_grad_()
        x.register_hook(lambda grad: add(gradients, "embedding", grad.square().mean(2).sum()))
        return x, *inputs[1:]

    hooks = [
        layer.register_forward_hook(lambda _, x, y, name=f"{path}.weight": watch(name, x[0], y))
        for path, layer in model.blocks.named_modules(prefix="blocks")
        if isinstance(layer, nn.Linear)
    ]
    hooks.append(model.blocks[0].register_forward_pre_hook(watch_embedding))
    head = "token_embedding" if model.config.tie_embeddings else "head"
    with torch.enable_grad():
        length = windows.size(1)
        for rows in windows.split(windows_at_once(length, model, BATCH * length)):
            y = model.final_norm(model.hidden(rows[:, :-1]))
            logits = F.linear(y, model.get_parameter(f"{head}.weight"))
            watch(f"{head}.weight", y, logits)
            known = logits[..., : model.config.vocab_size]
            F.cross_entropy(known.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    embedding_gradient = gradients.pop("embedding")
    if head == "head":
        gradients["token_embedding.weight"] = embedding_gradient * frequencies
    if model.config.family.learned_positions:
        length = windows.size(1) - 1
        seen = (torch.arange(model.config.context) < length) / length
        gradients["position_embedding.weight"] = embedding_gradient * seen
    return Calibration(inputs, gradients)


class GPTQ:
    """The matrices among `tensors`, prepared for codes of any number of bits."""

    def __init__(self, tensors: dict[str, Tensor], calibration: Calibration) -> None:
        matrices = {name: weight for name, weight in tensors.items() if weight.ndim == 2}
        self.total = sum(weight.numel() for weight in matrices.values())
        self.layers = {name: _Matrix(each, calibration, name) for name, each in matrices.items()}

    def codes(self, bits: float) -> dict[str, QuantizedWeight]:
        """Codes (rows, columns) and float16 scales (rows, 1) of all matrices.

        Codes lie in -8 ... 7 where every weight is at most `NARROW` times its row's scale, else in
        -127 ... 127. The scales are set so that a weight costs `bits` on average and one more bit
        would lower the loss equally in every row (reverse water-filling).
        """
        low, high = -40.0, 40.0  # log2 of the coarseness
        step = 1 + self.total // SAMPLED
        for _ in range(16):
            middle = (low + high) / 2
            coded = sum(layer.expected_bits(2**middle, step) for layer in self.layers.values())
            low, high = (middle, high) if coded > bits * self.total else (low, middle)
        return {name: layer.quantized(2**high) for name, layer in self.layers.items()}


class _Matrix:
    """A matrix with the second-order statistics of the loss around it."""

    def __init__(self, weight: Tensor, calibration: Calibration, name: str) -> None:
        self.weight = weight.float()
        self.largest = self.weight.abs().amax(dim=1)
        importance = calibration.gradients[name]
        mean = importance.mean().clamp(min=1e-30)
        importance = importance.clamp(MIN_IMPORTANCE * mean, mean / MIN_IMPORTANCE)
        hessian = calibration.inputs.get(name)
        self.hessian_inverse = None
        if hessian is not None:
            hessian = hessian.double()
            floor = DAMPING * hessian.diagonal().mean().clamp(min=1e-30)
            hessian = hessian + floor * torch.eye(len(hessian), dtype=hessian.dtype)
            # Columns with large inputs first, while many columns are left to compensate for them.
            self.order = hessian.diagonal().argsort(descending=True, stable=True)
            hessian = hessian[self.order][:, self.order]
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
            # Kept as its upper Cholesky factor, as GPTQ uses it.
            self.hessian_inverse = torch.linalg.cholesky(inverse, upper=True).float()
            importance = importance * self.hessian_inverse.diagonal().square().reciprocal().mean()
        self.inverse_importance = importance.rsqrt()

    def scales(self, coarseness: float) -> Tensor:
        """The scale of each row, (rows, 1) in float16."""
        least = self.largest / WIDE
        steps = torch.maximum(coarseness * self.inverse_importance, least).clamp(2**-14, 2**15)
        steps = torch.exp2((steps.log2() * SCALES_PER_OCTAVE).round() / SCALES_PER_OCTAVE)
        return steps.half().unsqueeze(1)

    def expected_bits(self, coarseness: float, step: int) -> float:
        """The entropy of all codes in bits, estimated by plain rounding without compensation.

        Of every `step` rows one is looked at.
        """
        scales, weight = self.scales(coarseness)[::step], self.weight[::step]
        codes = (weight / scales.float()).round_().add_(2 * WIDE).int()
        nats = 0.0
        for run in runs_by_scale(scales.squeeze(1).numpy(), codes.numel()):
            counts = torch.bincount(codes[run].flatten())
            nats += float(torch.special.entr(counts / counts.sum()).sum() * counts.sum())
        return nats / math.log(2) * self.weight.numel() / weight.numel()

    def quantized(self, coarseness: float) -> QuantizedWeight:
        """Codes and scales by GPTQ, or by plain rounding for a lookup table."""
        scales = self.scales(coarseness)
        steps = scales.float().squeeze(1)
        narrow = bool((self.largest <= NARROW * steps).all())
        low, high = (-8, 7) if narrow else (-WIDE, WIDE)
        if self.hessian_inverse is None:
            codes = (self.weight / steps.unsqueeze(1)).round_().clamp_(low, high)
            return QuantizedWeight(codes.to(torch.int8), scales)
        parts = zip(self.weight.split(ROWS), steps.split(ROWS), strict=True)
        codes = torch.cat([self._compensated(*part, low, high) for part in parts])
        return QuantizedWeight(codes, scales)

    def _compensated(self, weight: Tensor, steps: Tensor, low: int, high: int) -> Tensor:
        """Codes, int8, of some rows (rows, columns) with these scales (rows,), by GPTQ."""
        assert self.hessian_inverse is not None
        remaining = weight[:, self.order]
        codes = torch.empty_like(remaining)
        for start in range(0, remaining.size(1), BLOCK):
            block = remaining[:, start : start + BLOCK]
            inverse_rows = self.hessian_inverse[start : start + BLOCK]
            errors = torch.empty_like(block)
            for column in range(block.size(1)):
                code = (block[:, column] / steps).round_().clamp_(low, high)
                codes[:, start + column] = code
                index = start + column
                errors[:, column] = (block[:, column] - code * steps) / inverse_rows[column, index]
                factors = inverse_rows[column, index : start + block.size(1)]
                block[:, column:].addr_(errors[:, column], factors, alpha=-1)
            remaining[:, start + BLOCK :] -= errors @ inverse_rows[:, start + BLOCK :]
        return codes[:, self.order.argsort()].to(torch.int8)
