"""Codes of few bits that a model's predictions hardly notice, found on calibration text.

GPTQ (Frantar et al. 2022, arXiv 2210.17323) rounds a matrix column by column and lets the columns
that follow make up for each error. How coarsely a row is rounded follows from how much the loss
feels its errors; an entropy coder then makes small codes short (entropy-coded scalar quantization,
Gish & Pierce 1968), so a model can have any number of bits a weight.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..model.transformer import Transformer
from .rans import runs_by_scale
from .schemes import QuantizedWeight

DAMPING = 0.01
"""Of the mean square of a layer's inputs, added to each: what calibration has not seen."""
BLOCK = 64
"""Columns rounded before their errors are carried on to the rest at once."""
LEAST = 0.1
"""No row counts for less than this part of the mean, and none for more than its inverse: the loss
is only for small errors a square of them."""
NARROW = 8.5
"""Weights of at most so many steps have codes in -8 ... 7; what is cut off there is passed on."""
WIDE = 127
"""Codes of the other matrices end here. Rare large ones cost little once coded."""
STEPS_AN_OCTAVE = 8
"""Steps lie on a grid of powers of two, so that few bits name them."""
BATCH = 16
"""Windows in one pass of calibration."""


@dataclass(frozen=True)
class Calibration:
    """What text says about a model's matrices, by their names."""

    inputs: dict[str, Tensor]
    """E[x x^T] of what each is multiplied with, (columns, columns). Looked up rows have none."""
    gradients: dict[str, Tensor]
    """E[(d loss / d y)^2] of each row's outcome for a token, (rows,)."""


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

    hooks = [
        layer.register_forward_hook(lambda _, x, y, name=f"{path}.weight": watch(name, x[0], y))
        for path, layer in model.blocks.named_modules(prefix="blocks")
        if isinstance(layer, nn.Linear)
    ]
    head = "token_embedding" if model.config.tie_embeddings else "head"
    with torch.enable_grad():
        for rows in windows.split(BATCH):
            embedded, rope = model.embed(rows[:, :-1], 0)
            x = embedded.detach().requires_grad_()
            x.register_hook(lambda grad: add(gradients, "embedding", grad.square().mean(2).sum()))
            y = x
            for block in model.blocks:
                y = block(y, rope, None)
            y = model.final_norm(y)
            logits = F.linear(y, model.get_parameter(f"{head}.weight"))
            watch(f"{head}.weight", y, logits)
            known = logits[..., : model.config.vocab_size]
            F.cross_entropy(known.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").backward()
    for hook in hooks:
        hook.remove()
    looked_up = gradients.pop("embedding")
    if head == "head":
        gradients["token_embedding.weight"] = looked_up * frequencies
    if model.config.arch == "gpt2":
        length = windows.size(1) - 1
        seen = (torch.arange(model.config.context) < length) / length
        gradients["position_embedding.weight"] = looked_up * seen
    return Calibration(inputs, gradients)


def gptq(
    tensors: dict[str, Tensor], calibration: Calibration, bits: float
) -> dict[str, QuantizedWeight]:
    """Codes (rows, columns) and float16 scales (rows, 1) of all matrices among `tensors`.

    Codes lie in -8 ... 7 where no weight of the matrix is far larger than its row's step, else in
    -127 ... 127. The steps make a weight cost `bits` on average, and the last bit of each row buys
    as much loss as that of any other (reverse water-filling).
    """
    matrices = {name: weight for name, weight in tensors.items() if weight.ndim == 2}
    layers = {name: _Layer(weight, calibration, name) for name, weight in matrices.items()}
    total = sum(weight.numel() for weight in matrices.values())
    low, high = -40.0, 40.0  # log2 of the coarseness
    for _ in range(16):
        middle = (low + high) / 2
        coded = sum(layer.expected_bits(2**middle) for layer in layers.values())
        low, high = (middle, high) if coded > bits * total else (low, middle)
    return {name: layer.quantized(2**high) for name, layer in layers.items()}


class _Layer:
    """A matrix, and what its errors cost."""

    def __init__(self, weight: Tensor, calibration: Calibration, name: str) -> None:
        self.weight = weight.float()
        self.largest = self.weight.abs().amax(dim=1)
        importance = calibration.gradients[name]
        mean = importance.mean().clamp(min=1e-30)
        importance = importance.clamp(LEAST * mean, mean / LEAST)
        squares = calibration.inputs.get(name)
        self.carried = None
        if squares is not None:
            squares = squares.double()
            floor = DAMPING * squares.diagonal().mean().clamp(min=1e-30)
            squares = squares + floor * torch.eye(len(squares), dtype=squares.dtype)
            # Errors where inputs are large come first, while many columns can make up for them.
            self.order = squares.diagonal().argsort(descending=True, stable=True)
            squares = squares[self.order][:, self.order]
            inverse = torch.cholesky_inverse(torch.linalg.cholesky(squares))
            self.carried = torch.linalg.cholesky(inverse, upper=True).float()
            importance = importance * self.carried.diagonal().square().reciprocal().mean()
        self.inverse_importance = importance.rsqrt()

    def scales(self, coarseness: float) -> Tensor:
        """The step of each row, (rows, 1) in float16."""
        least = self.largest / WIDE
        steps = torch.maximum(coarseness * self.inverse_importance, least).clamp(2**-14, 2**15)
        steps = torch.exp2((steps.log2() * STEPS_AN_OCTAVE).round() / STEPS_AN_OCTAVE)
        return steps.half().unsqueeze(1)

    def expected_bits(self, coarseness: float) -> float:
        """The entropy of all codes, found by plain rounding."""
        scales = self.scales(coarseness)
        codes = (self.weight / scales.float()).round_().add_(2 * WIDE).int()
        nats = 0.0
        for run in runs_by_scale(scales.squeeze(1).numpy(), codes.numel()):
            counts = torch.bincount(codes[run].flatten())
            nats += float(torch.special.entr(counts / counts.sum()).sum() * counts.sum())
        return nats / math.log(2)

    def quantized(self, coarseness: float) -> QuantizedWeight:
        """Codes and scales."""
        scales = self.scales(coarseness)
        steps = scales.float().squeeze(1)
        narrow = bool((self.largest <= NARROW * steps).all())
        low, high = (-8, 7) if narrow else (-WIDE, WIDE)
        if self.carried is None:
            codes = (self.weight / steps.unsqueeze(1)).round_().clamp_(low, high)
            return QuantizedWeight(codes.to(torch.int8), scales)
        left = self.weight[:, self.order]
        codes = torch.empty_like(left)
        for start in range(0, left.size(1), BLOCK):
            here = left[:, start : start + BLOCK]
            carried = self.carried[start : start + BLOCK]
            errors = torch.empty_like(here)
            for column in range(here.size(1)):
                code = (here[:, column] / steps).round_().clamp_(low, high)
                codes[:, start + column] = code
                place = start + column
                errors[:, column] = (here[:, column] - code * steps) / carried[column, place]
                rest = carried[column, place : start + here.size(1)]
                here[:, column:].addr_(errors[:, column], rest, alpha=-1)
            left[:, start + BLOCK :] -= errors @ carried[:, start + BLOCK :]
        return QuantizedWeight(codes[:, self.order.argsort()].to(torch.int8), scales)
