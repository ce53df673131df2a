"""The training loop: it can stop after any step and continue to the same result."""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import UserError
from ..data.dataset import TokenData
from ..model.runtime import Machine, changes_warning, random_state, restore_random_state
from ..model.transformer import Transformer
from ..settings.train import TrainSettings
from .batches import Batches
from .calibration import rescaled
from .compilation import compile_if_it_pays
from .ema import Ema
from .history import POINTS_PER_EPOCH, Progress, log_lines
from .initialization import set_initial_weights
from .lora import add_adapters, merged_weights
from .optim import build_optimizers, lr_multiplier
from .step import accumulate_gradients, clip_gradients
from .validation import Validator


class NotFiniteError(Exception):
    """A loss, a gradient or a weight is infinite or NaN; the step was not taken."""

    def __init__(self, step: int, what: str, value: float) -> None:
        super().__init__(f"training stopped at step {step}: the {what} is {value}")


def progress_bar(total: int, initial: int) -> "tqdm[Any]":
    """A progress bar that counts steps."""
    return tqdm(total=total, initial=initial, desc="train", unit="step", mininterval=0.5)


class Trainer:
    """Trains a model; its state can be saved and restored after any step."""

    def __init__(
        self, model: Transformer, data: TokenData, settings: TrainSettings, machine: Machine
    ) -> None:
        self.num_parameters = model.parameter_count()
        if settings.adapt == "lora":
            add_adapters(model, settings.lora_targets, settings.lora_rank, settings.lora_alpha)
        self.model = model.to(machine.device)
        self.trained: list[Tensor] = [each for each in model.parameters() if each.requires_grad]
        self.num_trained = sum(parameter.numel() for parameter in self.trained)
        self.data = data
        self.settings = settings
        self.machine = machine
        self.batches = Batches(data, model.config.context, settings, machine.device)
        self.optimizers = build_optimizers(model, settings, machine.precision, data.token_bytes())
        self.ema = Ema(self.trained, settings.ema_decay)
        self.validator = Validator(self.model, data, machine, settings.val_tokens)
        self.progress = Progress()
        self.factors = torch.ones(model.config.width, device=machine.device)
        """Of the final norm's weights at the last validation, see `train.calibrate`."""
        self.best: dict[str, Tensor] = {}
        """The weights with the lowest validation loss so far."""
        self.total_steps = self.batches.total_steps
        """Steps of the whole run, if `train.patience` does not end it earlier."""
        self.compiled = compile_if_it_pays(
            self.model,
            machine,
            settings.compile,
            passes=self.total_steps * settings.accumulate,
            flops=6.0 * self.num_parameters * self.total_steps * self.batches.tokens_per_step,
        )

    # State -----------------------------------------------------------------------------------

    def initialize(self, init: str, pretrained: dict[str, Tensor] | None = None) -> None:
        """Set the initial weights as `model.init` says; validate them unless they are random."""
        began, seed = time.monotonic(), self.settings.seed
        set_initial_weights(self.model, self.data, self.machine, seed, init, pretrained)
        if init == "random":
            return
        self.progress.elapsed = time.monotonic() - began
        val_loss = self.validator.loss()
        self.progress.curve.append({"step": 0, "epoch": 0, "val_loss": val_loss})
        self._keep_if_best(val_loss, epoch=0)
        self.progress.log_validation(0, val_loss, start=init.replace("_", " "))

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: tensors and plain values.

        Raises:
            NotFiniteError: a weight is not finite; the state saved before should be kept.
        """
        weights = [weight.detach() for weight in (*self.model.parameters(), *self.ema.averages)]
        norm = float(torch.stack(torch._foreach_norm(weights)).sum())
        self._check_finite(norm, "norm of the weights")
        return {
            "progress": dict(vars(self.progress)),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "best": self.best,
            "ema": self.ema.averages,
            "factors": self.factors,
            "random": random_state(self.machine.device),
            "machine": self.describe_machine(),
        }

    def restore(self, state: dict[str, Any]) -> str:
        """Continue from `state`; returns a warning where the result may differ in its last bits."""
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.best = state["best"]
        self.ema.averages = [tensor.to(self.machine.device) for tensor in state["ema"]]
        self.factors = state["factors"].to(self.machine.device)
        restore_random_state(state["random"], self.machine.device)
        return changes_warning(state["machine"], self.describe_machine())

    def describe_machine(self) -> dict[str, Any]:
        """What can change the last bits of the result, as plain values."""
        return self.machine.describe() | {"compiled": self.compiled}

    # Loop ------------------------------------------------------------------------------------

    def fit(
        self,
        save: Callable[[], None],
        stop_requested: Callable[[], bool],
        checkpoint_steps: int = 0,
        report: Callable[[float, float], None] = lambda loss, speed: None,
    ) -> None:
        """Train until the last step, until patience ends, or until a stop is requested.

        Calls `report` with loss and tokens/s after every step, and `save` after every epoch and
        every `checkpoint_steps` steps (0: never).

        Raises:
            NotFiniteError: a loss or a gradient is not finite; the steps before it are saved.
        """
        progress, tokens_per_step = self.progress, self.batches.tokens_per_step
        self.model.train()
        began, elapsed_before = time.monotonic(), progress.elapsed
        epoch_began, epoch_began_step = began, progress.step
        with progress_bar(self.total_steps, progress.step) as bar:
            while progress.step < self.total_steps and not progress.finished:
                try:
                    loss = self._step()
                except NotFiniteError:
                    with suppress(UserError, NotFiniteError):  # the first error matters more
                        save()
                    raise
                progress.point_losses.append(loss)
                progress.step += 1
                progress.elapsed = elapsed_before + time.monotonic() - began
                speed = tokens_per_step * (bar.format_dict["rate"] or 0)
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", False)
                bar.update()
                report(loss, speed)
                if self.batches.ends_epoch(progress.step):
                    taken = progress.step - epoch_began_step
                    self._end_epoch(taken * tokens_per_step / (time.monotonic() - epoch_began))
                    progress.elapsed = elapsed_before + time.monotonic() - began
                    save()
                    bar.write(log_lines(progress, self.settings, self.validator)[-1])
                    epoch_began, epoch_began_step = time.monotonic(), progress.step
                elif self.batches.ends_part(progress.step, POINTS_PER_EPOCH):
                    self._log_point()
                if stop_requested():
                    break
                if checkpoint_steps and progress.step % checkpoint_steps == 0:
                    save()
        if progress.step >= self.total_steps:
            progress.finished = True

    def _step(self) -> float:
        """One optimizer step over a batch; returns its mean loss in nats per token.

        If it raises, gradients and random generators are as before the step.
        """
        before = random_state(self.machine.device)
        try:
            loss = self._compute_gradients()
        except NotFiniteError:
            self.model.zero_grad(set_to_none=True)
            restore_random_state(before, self.machine.device)
            raise
        self.optimizers.step(self._lr_multiplier(self.progress.step))
        self.ema.update(self.progress.step)
        return loss

    def _compute_gradients(self) -> float:
        """Compute the gradients of a step, clipped; returns its mean loss in nats per token."""
        split_share = self.settings.split_tokens * self._lr_multiplier(self.progress.step)
        micro_batches = self.batches.micro_batches(self.progress.step, split_share)
        losses = accumulate_gradients(self.model, micro_batches, self.machine)
        norm = clip_gradients(self.trained, self.settings.grad_clip)
        # `item` waits for the GPU; called between micro-batches, it would leave the GPU idle.
        mean = sum(self._check_finite(loss.item(), "loss") for loss in losses)
        self._check_finite(norm.item(), "norm of the gradient")
        return mean

    def _lr_multiplier(self, step: int) -> float:
        return lr_multiplier(step, self.total_steps, self.settings)

    def _check_finite(self, value: float, what: str) -> float:
        if not math.isfinite(value):
            raise NotFiniteError(self.progress.step + 1, what, value)
        return value

    # Validation and history ------------------------------------------------------------------

    def _log_point(self) -> None:
        step = self.progress.step
        lr = self.settings.lr * self._lr_multiplier(step - 1)
        self.progress.add_point(self.batches.epoch(step), lr)

    def _end_epoch(self, tokens_per_second: float) -> None:
        """Validate, keep the best weights, log the epoch, decide whether to go on."""
        progress, patience = self.progress, self.settings.patience
        self._log_point()
        epoch = self.batches.epochs_done(progress.step)
        with self.ema.ema_weights():
            if self.settings.calibrate:
                self.factors = self.validator.calibrate(self.factors)
            with rescaled(self.model, self.factors):
                val_loss = self._check_finite(self.validator.loss(), "validation loss")
                self._keep_if_best(val_loss, epoch)
        progress.finished = bool(patience) and epoch - progress.best_epoch >= patience
        progress.end_epoch(epoch, val_loss, tokens_per_second)

    def _keep_if_best(self, val_loss: float, epoch: int) -> None:
        progress = self.progress
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_epoch = val_loss, epoch
            self.best = {
                name: tensor.detach().cpu().clone()
                for name, tensor in merged_weights(self.model).items()
            }
