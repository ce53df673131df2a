"""The optimizer and its learning rate. Knows nothing about the text or the loop."""

from torch import nn
from torch.optim import AdamW, Optimizer

from .settings.train import TrainSettings


def build_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019); only matrices decay, not norms, biases or embeddings."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        matrix = parameter.ndim == 2 and "embedding" not in name
        (decayed if matrix else others).append(parameter)
    return AdamW(
        [
            {"params": decayed, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=settings.lr,
        betas=(settings.beta1, settings.beta2),
        fused=True,
    )


def learning_rate(step: int, total: int, settings: TrainSettings) -> float:
    """The learning rate of a step (counted from 0) of `total`: rise, hold, fall in a line."""
    warmup = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    decay_steps = settings.decay_fraction * total
    left = min(1.0, (total - step) / decay_steps) if decay_steps else 1.0
    final = settings.final_lr_fraction
    return settings.lr * warmup * (final + (1 - final) * left)


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
