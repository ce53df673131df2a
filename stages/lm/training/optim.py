"""The optimizers (Muon, AdamW) and the learning rate schedule."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from ..model.transformer import Transformer
from ..settings.train import TrainSettings
from .lora import adapter_matrices
from .spellings import SharedRowsAdam, shared_rows

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration (Jordan 2024, as in `torch.optim.Muon`)."""
ADAM_EPSILON = 1e-10


class Muon(Optimizer):
    """Orthogonalized momentum (Jordan et al. 2024), the same update as `torch.optim.Muon`.

    The update of a matrix is the semi-orthogonal matrix nearest to its Nesterov momentum, times
    `lr * sqrt(max(1, rows / columns))`. A parameter may stack several matrices along its rows; the
    `rows` of its group are their sizes, and each is orthogonalized separately. Matrices of the
    same shape are orthogonalized in one batch.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.bfloat16,
        ns_steps: int = 5,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults)
        self.dtype = dtype
        self.ns_steps = ns_steps

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; overwrites the gradients."""
        stacks = defaultdict(list)  # by shape: (matrix, its update, learning rate)
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            momenta = [self._momentum(p) for p in parameters]
            updates = [p.grad for p in parameters]
            torch._foreach_lerp_(momenta, updates, 1 - group["momentum"])
            torch._foreach_lerp_(updates, momenta, group["momentum"])
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
            for parameter, update in zip(parameters, updates, strict=True):
                rows = group["rows"]
                for weight, part in zip(parameter.split(rows), update.split(rows), strict=True):
                    stacks[part.shape].append((weight, part, group["lr"]))
        for (rows, columns), members in stacks.items():
            stack = torch.stack([part for _, part, _ in members])
            directions = orthogonalize(stack.to(self.dtype), self.ns_steps)
            scale = math.sqrt(max(1, rows / columns))
            for (weight, _, lr), direction in zip(members, directions, strict=True):
                weight.add_(direction, alpha=-lr * scale)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Bring the singular values of `matrices` (N, rows, columns) near one; same shape and type.

    Newton-Schulz iteration: matrix products only, on the Gram matrix of the smaller side.
    """
    tall = matrices.size(1) > matrices.size(2)
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Optimizers:
    """The optimizers of one model, stepped together under one learning rate schedule."""

    def __init__(self, optimizers: list[Optimizer]) -> None:
        self.all = optimizers
        self.peaks = [[group["lr"] for group in each.param_groups] for each in optimizers]

    def step(self, multiplier: float) -> None:
        """Step at `multiplier` times every group's peak learning rate; clears the gradients."""
        for optimizer, peaks in zip(self.all, self.peaks, strict=True):
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * multiplier
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[int, dict[str, Tensor]]]:
        """For each optimizer what it keeps of every parameter, by its number; {} before a step."""
        return [optimizer.state_dict()["state"] for optimizer in self.all]

    def load_state_dict(self, states: list[dict[int, dict[str, Tensor]]]) -> None:
        """Continue from `state_dict`. All else follows from the settings."""
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(optimizer.state_dict() | {"state": state})

    @staticmethod
    def state_names(optimizer: Optimizer) -> tuple[str, ...]:
        """The names of what an optimizer keeps of a parameter."""
        return ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")


def build_optimizers(
    model: Transformer,
    settings: TrainSettings,
    precision: str = "float32",
    tokens: list[bytes] | None = None,
) -> Optimizers:
    """Muon for the matrices of the blocks and AdamW (Loshchilov & Hutter 2019) for the rest.

    With `train.optimizer: adamw`, AdamW for everything, at one learning rate. Weight decay applies
    to the matrices of the blocks, and under AdamW to the head too. LoRA adapters always use AdamW:
    Muon fitted them more slowly. `tokens` are the bytes of the vocabulary, for
    `train.share_spellings`.
    """
    lr, decay = settings.lr, settings.weight_decay
    betas = (settings.beta1, settings.beta2)
    if adapters := adapter_matrices(model):
        groups: list[dict[str, Any]] = [{"params": adapters, "weight_decay": decay}]
        return Optimizers([AdamW(groups, lr=lr, betas=betas, eps=ADAM_EPSILON, fused=True)])
    matrices = model.block_matrices()
    inside = {parameter for parameter, _ in matrices}
    embeddings: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter not in inside:
            (embeddings if "embedding" in name else others).append(parameter)
    if settings.optimizer == "adamw":
        decayed = [p for p, _ in matrices] + [p for p in others if p.ndim == 2]
        kept = embeddings + [p for p in others if p.ndim == 1]
        groups = [
            {"params": decayed, "weight_decay": decay},
            {"params": kept, "weight_decay": 0.0},
        ]
        return Optimizers([AdamW(groups, lr=lr, betas=betas, eps=ADAM_EPSILON, fused=True)])
    muon = _muon(matrices, settings, precision)
    groups = [
        {"params": embeddings, "lr": settings.embedding_lr},
        {"params": others, "lr": settings.head_lr},
    ]
    options: dict[str, Any] = {"betas": betas, "eps": ADAM_EPSILON, "weight_decay": 0.0}
    options["fused"] = True
    adamw = AdamW(groups, **options)
    if settings.share_spellings and tokens:
        tables: list[tuple[Tensor, float]]
        tables = [(model.token_embedding.weight, settings.embedding_lr)]
        if not model.config.tie_embeddings:
            tables.append((model.head.weight, settings.head_lr))
        shared = shared_rows(tokens, model.config.padded_vocab)
        # Before AdamW, which clears the gradients of the tables.
        return Optimizers([muon, SharedRowsAdam(tables, shared, **options), adamw])
    return Optimizers([muon, adamw])


def _muon(
    matrices: list[tuple[nn.Parameter, list[int]]], settings: TrainSettings, precision: str
) -> Muon:
    """Muon for these parameters, each with the rows of the matrices that it holds."""
    by_rows: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
    for parameter, rows in matrices:
        by_rows[tuple(rows)].append(parameter)
    return Muon(
        [{"params": members, "rows": list(rows)} for rows, members in by_rows.items()],
        lr=settings.lr,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )


def lr_multiplier(step: int, total: int, settings: TrainSettings) -> float:
    """The learning rate at `step` (counted from 0) of `total`, as a fraction of its peak.

    Linear warm-up, constant, linear decay.
    """
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    decay_steps = settings.decay_fraction * total
    left = min(1.0, (total - step) / decay_steps) if decay_steps else 1.0
    final = settings.final_lr_fraction
    return warmup * (final + (1 - final) * left)
