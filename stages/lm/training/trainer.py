"""The training loop: windows in, weights out, saved so that it can stop at any moment.

Knows nothing about `params.yaml`, DVC or where files lie; the stage hands it what it needs.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..core.errors import UserError
from ..data.dataset import TokenData
from ..data.sequence_packing import IGNORE_INDEX, targets_and_segments
from ..data.windows import PackedRowSampler, WindowSampler, gather
from ..model.metrics import duration, loss_units, timestamp
from ..model.runtime import Machine, add_in_order, can_compile, random_state, restore_random_state
from ..model.scoring import score_split
from ..model.transformer import Transformer, init_weights
from ..settings.train import TrainSettings
from .bigrams import fit_bigrams
from .lora import add_adapters, init_adapters, merged_weights
from .optim import build_optimizers, lr_multiplier
from .token_splitting import split_tokens

COMPILE_FROM_FLOPS = 5e13
"""Compiling takes up to half a minute and then saves about a tenth of each step, so it pays from
about five minutes on, which two cores need for about this many operations."""
COMPILE_FROM_PASSES = 2_000
"""Batches a run on a GPU goes through, from which it pays there: on an H100 it took 20 to 25 s and
saved 9 ms of a small model's pass, 26 ms of GPT-2's of 32,768 tokens."""

ROWS_PER_EPOCH = 10
"""Points of the training curve in an epoch."""

CALIBRATION_TOKENS = 16_384
"""Validation tokens on which a temperature is chosen: more would move this one number by less than
matters."""
TEMPERATURE_RATIO = 1.06
"""Between temperatures that are tried; a parabola tells the best one between them."""
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.5, 2.0
"""Whatever a short or strange validation split may say: the model is to write, too."""


@dataclass
class Progress:
    """Everything the loop remembers besides weights and optimizer; plain values only."""

    step: int = 0
    elapsed: float = 0.0
    """Seconds of training, over all resumes."""
    temperature: float = 1.0
    """By which the logits of the weights last validated were divided, see `train.calibrate`."""
    row_losses: list[float] = field(default_factory=list)
    """Training losses since the last point of the curve."""
    epoch_losses: list[float] = field(default_factory=list)
    """Sums and counts of the losses of this epoch, a pair a point of the curve."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    """The lines of `training.log`, one an epoch."""
    best_val_loss: float = math.inf
    best_epoch: int = 0
    finished: bool = False


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once: B windows or rows of T tokens."""

    learned: int
    """Targets that count."""
    inputs: Tensor
    """(B, T), and so are the others."""
    targets: Tensor
    segments: Tensor | None = None


class Trainer:
    """A model being trained: the loop and its state."""

    def __init__(
        self,
        model: Transformer,
        data: TokenData,
        settings: TrainSettings,
        machine: Machine,
    ) -> None:
        self.parameters = model.parameter_count()
        if settings.adapt == "lora":
            add_adapters(model, settings.lora_targets, settings.lora_rank, settings.lora_alpha)
        self.model = model.to(machine.device)
        self.trained: list[Tensor] = [each for each in model.parameters() if each.requires_grad]
        self.data = data
        self.settings = settings
        self.machine = machine
        self.optimizers = build_optimizers(model, settings, machine.precision)
        self.tokens, context, order = data.train, model.config.context, WindowSampler
        self.left_out = 0
        """Records that are too long for the context."""
        if data.records:
            rows, self.left_out = data.packed("train", context)
            for split in ("val", "test"):
                data.packed(split, context)  # refuses now what could not be scored later
            self.tokens, context, order = rows.reshape(-1), rows.shape[1] - 1, PackedRowSampler
        self.order = order(
            tokens=len(self.tokens),
            context=context,
            batch=settings.batch_size * settings.accumulate,
            seed=settings.seed,
        )
        self.total_steps = self.order.steps(settings.epochs)
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}
        self.average: list[Tensor] = []
        self.compiled = self._pays_to_compile() and can_compile(machine.device)
        if self.compiled:
            if machine.device.type == "cpu":
                add_in_order()
            # Not as a graph of all launches ("reduce-overhead"), although a small model's take most
            # of its time: on an H100 with torch 2.11 runs failed, or learned less.
            self.model.compile()

    def _pays_to_compile(self) -> bool:
        """Whether the run is long enough: a function of the run alone, so that a resumed run
        decides as it did before."""
        if self.settings.compile != "auto":
            return self.settings.compile == "on"
        if self.machine.device.type == "cuda":
            return self.total_steps * self.settings.accumulate > COMPILE_FROM_PASSES
        tokens = self.total_steps * self.order.batch * self.order.length
        return 6.0 * self.parameters * tokens > COMPILE_FROM_FLOPS

    # State -----------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All that is needed to continue as if nothing had happened: tensors and plain values.

        Raises:
            UserError: a weight is not finite; what was saved before is worth more.
        """
        weights = [weight.detach() for weight in (*self.model.parameters(), *self.average)]
        self._finite(float(torch.stack(torch._foreach_norm(weights)).sum()), "norm of the weights")
        return {
            "progress": dict(vars(self.progress)),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "best": self.best,
            "average": self.average,
            "random": random_state(self.machine.device),
            "machine": self.describe(),
        }

    def restore(self, state: dict[str, Any]) -> str:
        """Continue from `state`; returns a warning where the result may differ in its last bits."""
        self.progress = Progress(**state["progress"])
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.best = state["best"]
        self.average = [tensor.to(self.machine.device) for tensor in state["average"]]
        restore_random_state(state["random"], self.machine.device)
        here, there = self.describe(), state["machine"]
        changes = [
            f"{key} was {there[key]}, is {here[key]}" for key in here if here[key] != there[key]
        ]
        if not changes:
            return ""
        return f"the last bits may differ from an uninterrupted run: {'; '.join(changes)}"

    def begin(self, from_bigrams: bool, weights: dict[str, Tensor] | None = None) -> None:
        """Set the weights as a run begins with them: `weights`, if there are, or fresh ones."""
        began = time.monotonic()
        seed = self.settings.seed
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)  # dropout
        if weights is not None:
            init_adapters(self.model, generator)
            self.model.load_state_dict(self.model.state_dict() | weights)
        else:
            init_weights(self.model, generator)
            if not from_bigrams:
                return
            fit_bigrams(self.model, self.data.train, self.machine, generator)
        self.progress.elapsed = time.monotonic() - began
        val_loss = self.validate()
        self.progress.curve.append({"step": 0, "epoch": 0, "val_loss": val_loss})
        self._keep_if_best(val_loss, epoch=0)
        self.progress.log.append(
            f"{timestamp()}  {'bigrams' if from_bigrams else 'base'}  val {val_loss:.4f}  "
            f"{self.bits_per_byte(val_loss):.4f} bits/byte  "
            f"{duration(self.progress.elapsed)} elapsed"
        )

    def trained_parameters(self) -> int:
        """Numbers that the run changes: those of the adapters, or all."""
        return sum(parameter.numel() for parameter in self.trained)

    def describe(self) -> dict[str, Any]:
        """What can change the last bits of the result."""
        return self.machine.describe() | {"compiled": self.compiled}

    # Loop ------------------------------------------------------------------------------------

    def epochs_done(self) -> int:
        """Epochs that are over after the steps taken so far."""
        done = self.progress.step * self.order.batch // self.order.per_epoch
        return min(done, self.settings.epochs)

    def run(
        self,
        save: Callable[[], None],
        stop_requested: Callable[[], bool],
        checkpoint_steps: int = 0,
        report: Callable[[float, float], None] = lambda loss, speed: None,
    ) -> None:
        """Train until the last step, until patience ends, or until a stop is requested.

        Each step is followed by a `report` of its loss and of the speed in tokens/s.

        Raises:
            UserError: a loss or a gradient is not finite; the step is not taken, those before
                it are saved.
        """
        progress = self.progress
        self.model.train()
        began, elapsed_before = time.monotonic(), progress.elapsed
        epoch_began, epoch_began_step = began, progress.step
        tokens_per_step = self.order.batch * self.order.length
        with tqdm(
            total=self.total_steps,
            initial=progress.step,
            desc="train",
            unit="step",
            mininterval=0.5,
        ) as bar:
            while progress.step < self.total_steps and not progress.finished:
                epochs_before = self.epochs_done()
                try:
                    loss = self._step()
                except UserError:
                    with suppress(UserError):  # what stopped the run matters more
                        save()
                    raise
                progress.row_losses.append(loss)
                progress.step += 1
                progress.elapsed = elapsed_before + time.monotonic() - began
                speed = tokens_per_step * (bar.format_dict["rate"] or 0)
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", False)
                bar.update()
                report(loss, speed)
                if self.epochs_done() > epochs_before:
                    taken = progress.step - epoch_began_step
                    rate = taken * tokens_per_step / (time.monotonic() - epoch_began)
                    self._end_epoch(rate)
                    progress.elapsed = elapsed_before + time.monotonic() - began
                    save()
                    bar.write(progress.log[-1])
                    epoch_began, epoch_began_step = time.monotonic(), progress.step
                elif self._rows_done(progress.step) > self._rows_done(progress.step - 1):
                    self._end_row()
                if stop_requested():
                    break
                if checkpoint_steps and progress.step % checkpoint_steps == 0:
                    save()
        if progress.step >= self.total_steps:
            progress.finished = True

    def _rows_done(self, step: int) -> int:
        """Points of the curve that are complete after `step` steps."""
        return step * self.order.batch * ROWS_PER_EPOCH // self.order.per_epoch

    def _step(self) -> float:
        """One optimizer step over a batch; returns its mean loss in nats per token.

        A step that is not taken leaves nothing behind: the state is that before it.
        """
        before = random_state(self.machine.device)
        try:
            loss = self._gradients()
        except UserError:
            self.model.zero_grad(set_to_none=True)
            restore_random_state(before, self.machine.device)
            raise
        rate = lr_multiplier(self.progress.step, self.total_steps, self.settings)
        self.optimizers.step(rate)
        self._update_average()
        return loss

    def _gradients(self) -> float:
        """Leave the gradients of a step's batch in the parameters; returns its mean loss."""
        progress, settings = self.progress, self.settings
        starts = self.order.batch_starts(progress.step)
        rate = lr_multiplier(progress.step, self.total_steps, settings)
        # The order of the text has the keys (seed, epoch), which stay far below.
        random = np.random.Generator(
            np.random.Philox(key=[settings.seed, (1 << 32) + progress.step])
        )
        parts = [
            self._part(part, settings.split_tokens * rate, random)
            for part in np.split(starts, settings.accumulate)
        ]
        learned = sum(part.learned for part in parts)
        losses = []
        for part in parts:
            with self.machine.autocast():
                loss = self.model(part.inputs, targets=part.targets, segments=part.segments)
            # The mean over all that the step learns; a part of records may hold nothing to learn.
            loss = loss / (learned / part.learned if part.learned else math.inf)
            loss.backward()
            losses.append(loss.detach())
        limit = settings.grad_clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.trained, limit)
        # Read once everything is under way: a GPU would stand still meanwhile.
        mean = sum(self._finite(loss.item(), "loss") for loss in losses)
        self._finite(norm.item(), "norm of the gradient")
        return mean

    def _part(self, starts: np.ndarray, split: float, random: np.random.Generator) -> "MicroBatch":
        """The windows or rows that begin at `starts`, with a share of their tokens split."""
        ids = gather(self.tokens, starts, self.order.length)
        if split:
            ids = split_tokens(ids, self.data.merges, split, random)
        arrays, learned = [ids[:, :-1], ids[:, 1:]], ids[:, 1:].size
        if self.data.records:
            arrays[1:] = targets_and_segments(ids, *self.data.record_ends)
            learned = int((arrays[1] != IGNORE_INDEX).sum())
        device = self.machine.device
        return MicroBatch(
            learned, *(torch.from_numpy(each).to(device, non_blocking=True) for each in arrays)
        )

    @torch.no_grad()
    def _update_average(self) -> None:
        """Move the averaged weights towards the present ones; faster at first."""
        if not self.settings.average:
            return
        if not self.average:
            self.average = [weight.clone() for weight in self.trained]
        step = self.progress.step
        memory = min(self.settings.average, (step + 1) / (step + 10))
        torch._foreach_lerp_(self.average, self.trained, 1 - memory)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the averaged weights in the model for the block, where there are any."""
        weights = [weight.data for weight in self.trained]
        averages = self.average or weights
        for parameter, average in zip(self.trained, averages, strict=True):
            parameter.data = average
        try:
            yield
        finally:
            for parameter, weight in zip(self.trained, weights, strict=True):
                parameter.data = weight

    @contextmanager
    def _cooled(self, temperature: float) -> Iterator[None]:
        """Have the logits divided by `temperature` for the block: the last norm scales them all."""
        norm = list(self.model.final_norm.parameters())
        weights = [weight.data for weight in norm]
        for parameter, weight in zip(norm, weights, strict=True):
            parameter.data = weight / temperature
        try:
            yield
        finally:
            for parameter, weight in zip(norm, weights, strict=True):
                parameter.data = weight

    def _best_temperature(self) -> float:
        """Where the validation loss is lowest, looked for from that of the epoch before.

        Temperature scaling (Guo et al. 2017): what has learned its text by heart is surer than it
        is right. The loss has one valley, as it is convex in the inverse of the temperature.
        """

        def temperature(place: float) -> float:
            exact: float = self.progress.temperature * TEMPERATURE_RATIO**place
            return min(max(exact, LEAST_TEMPERATURE), MOST_TEMPERATURE)

        @cache
        def loss(place: int) -> float:
            with self._cooled(temperature(place)):
                return self.validate(CALIBRATION_TOKENS)

        place = 0
        while loss(lower := min(place - 1, place + 1, key=loss)) < loss(place):
            place = lower
        before, here, after = (loss(place + offset) for offset in (-1, 0, 1))
        bend = before - 2 * here + after
        return temperature(place + ((before - after) / (2 * bend) if bend > 0 else 0.0))

    def _finite(self, value: float, what: str) -> float:
        if math.isfinite(value):
            return value
        raise UserError(
            f"training stopped at step {self.progress.step + 1}: the {what} is {value}, so the "
            "step was not taken. The usual causes are too high a learning rate (train.lr is "
            f"{self.settings.lr:g}), too short a warm-up (train.warmup_steps is "
            f"{self.settings.warmup_steps}) or too little precision (train.precision is "
            f"{self.settings.precision}); change one and run the same command again."
        )

    def _end_row(self) -> None:
        """Add a point to the training curve."""
        progress = self.progress
        total, count = math.fsum(progress.row_losses), len(progress.row_losses)
        progress.epoch_losses += [total, count]
        progress.row_losses.clear()
        progress.curve.append(
            {
                "step": progress.step,
                "epoch": round(progress.step * self.order.batch / self.order.per_epoch, 4),
                "train_loss": total / count,
                "lr": self.settings.lr
                * lr_multiplier(progress.step - 1, self.total_steps, self.settings),
            }
        )

    def _end_epoch(self, rate: float) -> None:
        """Validate, keep the best weights, write the epoch's line, decide whether to go on."""
        progress = self.progress
        self._end_row()
        train_loss = math.fsum(progress.epoch_losses[0::2]) / sum(progress.epoch_losses[1::2])
        progress.epoch_losses.clear()
        epoch = self.epochs_done()
        with self._averaged():
            if self.settings.calibrate:
                progress.temperature = self._best_temperature()
            with self._cooled(progress.temperature):
                val_loss = self._finite(self.validate(), "validation loss")
                self._keep_if_best(val_loss, epoch)
        progress.curve[-1] |= {"epoch_loss": train_loss, "val_loss": val_loss}
        patience = self.settings.patience
        progress.finished = bool(patience) and epoch - progress.best_epoch >= patience
        progress.log.append(
            f"{timestamp()}  epoch {epoch}/{self.settings.epochs}  train {train_loss:.4f}  "
            f"val {val_loss:.4f}  gap {val_loss - train_loss:+.4f}  "
            f"{self.bits_per_byte(val_loss):.4f} bits/byte  "
            f"lr {progress.curve[-1]['lr']:.2e}  {rate:,.0f} tokens/s  "
            f"{duration(progress.elapsed)} elapsed  checkpoint written"
            + (f"  temperature {progress.temperature:.3f}" if self.settings.calibrate else "")
            + (
                f"  stopped: no better epoch since {progress.best_epoch}"
                if progress.finished
                else ""
            )
        )

    def _keep_if_best(self, val_loss: float, epoch: int) -> None:
        progress = self.progress
        if val_loss < progress.best_val_loss:
            progress.best_val_loss, progress.best_epoch = val_loss, epoch
            self.best = {
                name: tensor.detach().cpu().clone()
                for name, tensor in merged_weights(self.model).items()
            }

    def validate(self, max_tokens: int | None = None) -> float:
        """Nats per token on the validation split, on at most `max_tokens` or `train.val_tokens`."""
        # Scoring has windows of its own shapes; compiling for each would cost more than it saves.
        with torch.compiler.set_stance("force_eager"):
            most = min(max_tokens or self.settings.val_tokens, self.settings.val_tokens)
            nats, tokens = score_split(self.model, self.data, "val", self.machine, most)
        return nats / tokens

    def bits_per_byte(self, val_loss: float) -> float:
        """A validation loss in the unit that compares across tokenizers."""
        tokens = self.data.scored_tokens("val")
        size = self.data.meta["splits"]["val"]["bytes"]
        return loss_units(val_loss * tokens, tokens, size)["bits_per_byte"]

    def summary(self) -> dict[str, Any]:
        """What `metrics/train.json` holds: numbers that depend on nothing but the run."""
        progress = self.progress
        epochs = [row for row in progress.curve if "epoch_loss" in row]
        return {
            "epochs": self.epochs_done(),
            "steps": progress.step,
            "tokens_seen": progress.step * self.order.batch * self.order.length,
            "train_loss": round(epochs[-1]["epoch_loss"], 6),
            "val_loss": round(epochs[-1]["val_loss"], 6),
            "train_val_gap": round(epochs[-1]["val_loss"] - epochs[-1]["epoch_loss"], 6),
            "best_val_loss": round(progress.best_val_loss, 6),
            "best_val_bits_per_byte": self.bits_per_byte(progress.best_val_loss),
            "best_epoch": progress.best_epoch,
            "parameters": self.parameters,
            "trained_parameters": self.trained_parameters(),
        }
