"""What a run has measured so far: loss curve, log and summary.

`Progress` holds plain numbers and is saved with the run's state; the lines of `training.log` are
formatted from it.
"""

import math
from dataclasses import dataclass, field
from typing import Any

from ..model.metrics import duration, timestamp
from ..settings.train import TrainSettings
from .batches import Batches
from .validation import Validator

POINTS_PER_EPOCH = 10
"""Points of the training curve in an epoch."""


@dataclass
class Progress:
    """The state of the loop besides weights and optimizers; plain values only."""

    step: int = 0
    elapsed: float = 0.0
    """Seconds of training, over all resumes."""
    point_losses: list[float] = field(default_factory=list)
    """Training losses of the steps since the last point of the curve."""
    epoch_losses: list[float] = field(default_factory=list)
    """For each point of this epoch the sum and the number of its losses, alternating."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """The rows of `metrics/loss.tsv`; the last of an epoch also has `epoch_loss` and `val_loss`."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """The figures of each validation, which `log_lines` formats."""
    best_val_loss: float = math.inf
    best_epoch: int = 0
    finished: bool = False

    def add_point(self, epoch: float, lr: float) -> None:
        """Add a point to the curve: the mean loss of the steps since the last one."""
        total, count = math.fsum(self.point_losses), len(self.point_losses)
        self.epoch_losses += [total, count]
        self.point_losses.clear()
        self.curve.append(
            {"step": self.step, "epoch": round(epoch, 4), "train_loss": total / count, "lr": lr}
        )

    def end_epoch(self, epoch: int, val_loss: float, tokens_per_second: float) -> None:
        """Add an epoch's mean training loss and its validation loss to the curve and the log."""
        train_loss = math.fsum(self.epoch_losses[0::2]) / sum(self.epoch_losses[1::2])
        self.epoch_losses.clear()
        self.curve[-1] |= {"epoch_loss": train_loss, "val_loss": val_loss}
        self.log_validation(
            epoch,
            val_loss,
            train_loss=train_loss,
            lr=self.curve[-1]["lr"],
            tokens_per_second=tokens_per_second,
            no_better_since=self.best_epoch if self.finished else None,
        )

    def log_validation(self, epoch: int, val_loss: float, **figures: Any) -> None:
        """Add a validation, with the time of day and of training, to the log."""
        self.log.append(
            {"time": timestamp(), "elapsed": self.elapsed, "epoch": epoch, "val_loss": val_loss}
            | figures
        )


def log_lines(progress: Progress, settings: TrainSettings, validator: Validator) -> list[str]:
    """The lines of `training.log`, one for each validation."""
    return [
        _log_line(entry, settings, validator.bits_per_byte(entry["val_loss"]))
        for entry in progress.log
    ]


def _log_line(entry: dict[str, Any], settings: TrainSettings, bits_per_byte: float) -> str:
    val = f"val {entry['val_loss']:.4f}"
    bits = f"{bits_per_byte:.4f} bits/byte"
    elapsed = f"{duration(entry['elapsed'])} elapsed"
    if "train_loss" not in entry:
        return "  ".join([entry["time"], entry["start"], val, bits, elapsed])
    parts = [
        entry["time"],
        f"epoch {entry['epoch']}/{settings.epochs}",
        f"train {entry['train_loss']:.4f}",
        val,
        f"gap {entry['val_loss'] - entry['train_loss']:+.4f}",
        bits,
        f"lr {entry['lr']:.2e}",
        f"{entry['tokens_per_second']:,.0f} tokens/s",
        elapsed,
        "checkpoint written",
    ]
    if entry["no_better_since"] is not None:
        parts.append(f"stopped: no better epoch since {entry['no_better_since']}")
    return "  ".join(parts)


def summary(progress: Progress, batches: Batches, validator: Validator) -> dict[str, Any]:
    """The figures of `metrics/train.json`: no times, so that the same run gives the same file."""
    last = next(row for row in reversed(progress.curve) if "epoch_loss" in row)
    return {
        "epochs": batches.epochs_done(progress.step),
        "steps": progress.step,
        "tokens_seen": progress.step * batches.tokens_per_step,
        "train_loss": round(last["epoch_loss"], 6),
        "val_loss": round(last["val_loss"], 6),
        "train_val_gap": round(last["val_loss"] - last["epoch_loss"], 6),
        "best_val_loss": round(progress.best_val_loss, 6),
        "best_val_bits_per_byte": validator.bits_per_byte(progress.best_val_loss),
        "best_epoch": progress.best_epoch,
    }
