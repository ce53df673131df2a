"""Stage `train`: tokens -> `models/checkpoint.pt`, `metrics/train.json`, `metrics/loss.tsv`.

Continues an unfinished run with the same settings, text and code.
"""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.train`")

import signal
import time
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from types import FrameType

from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id
from stages.lm.core.errors import UserError
from stages.lm.core.files import write_json
from stages.lm.core.inputs import FileVersions
from stages.lm.core.stage import run_stage
from stages.lm.data.dataset import TokenData
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import FAMILIES, ModelConfig
from stages.lm.model.metrics import append_missing_lines, timestamp, write_tsv
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.model.transformer import Transformer
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.recipes import automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.train import TrainSettings
from stages.lm.training.history import log_lines, summary
from stages.lm.training.resume import ResumeStore, RunIdentity, code_digests, only_trainer
from stages.lm.training.state_check import check_state
from stages.lm.training.trainer import NotFiniteError, Trainer

BASE_WEIGHTS = "the base weights"
"""Their name among a run's ingredients."""
CURVE = ("step", "epoch", "train_loss", "val_loss", "lr")


class StopSignal:
    """Records SIGINT, SIGTERM or SIGHUP: the current step ends before training stops."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)
        hangup = getattr(signal, "SIGHUP", None)  # a closed terminal; Windows has none
        if hangup and signal.getsignal(hangup) is not signal.SIG_IGN:  # `nohup` ignores it
            signal.signal(hangup, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def requested(self) -> bool:
        """Whether a signal was received."""
        return self.number != 0


class Reporter:
    """Writes the progress of the run once a second, for the page."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.due = time.monotonic()

    def __call__(self, loss: float, speed: float) -> None:
        """See `Trainer.fit`."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + 1
        trainer, batches, step = self.trainer, self.trainer.batches, self.trainer.progress.step
        tokens_left = (batches.total_steps - step) * batches.tokens_per_step
        figures = {
            "step": step,
            "steps": batches.total_steps,
            "epoch": batches.epochs_done(step) + 1,
            "epochs": trainer.settings.epochs,
            "loss": loss,
            "tokens_per_second": speed,
            "seconds_left": tokens_left / speed if speed else None,
        }
        with suppress(UserError):  # only the page reads it
            write_json(paths.PROGRESS, figures)


def main() -> int:
    """Start or continue training; returns the exit code."""
    runtime = load_section(RuntimeSettings)
    stop = StopSignal()
    with only_trainer(paths.ROOT / "models" / "resume" / "workspace.lock"):
        files = FileVersions([paths.TOKENS])
        data = TokenData.load(paths.TOKENS)
        init_from = load_init_from()
        base = None if init_from == SCRATCH else PretrainedModel.open(init_from)
        fixed = base.fixed_settings() if base else {}
        auto = automatic(data.text_bytes(), base=fixed, lengths=data.lengths)
        settings = load_section(TrainSettings, auto=auto.values)
        model_settings = load_section(ModelSettings, auto=auto.values)
        for section in (ModelSettings.SECTION, TrainSettings.SECTION):
            for line in auto.lines(section):
                print(line)
        identity = identify(model_settings, settings, data, base)
        store = ResumeStore(paths.resume_folder(), identity)
        with only_trainer(store.path.parent / "lock"):
            try:
                machine = pick_machine(runtime, settings.precision)
                trainer = build_trainer(model_settings, settings, data, machine, base)
                if not resume(trainer, store):
                    trainer.initialize(
                        model_settings.init,
                        base.state_dict(trainer.model.config) if base else None,
                    )
                return train(trainer, store, model_settings, files, stop, runtime.checkpoint_steps)
            except RuntimeError as error:
                raise out_of_memory(error, settings, model_settings) from error


def identify(
    model_settings: ModelSettings,
    settings: TrainSettings,
    data: TokenData,
    base: PretrainedModel | None,
) -> RunIdentity:
    """Everything that the trained weights depend on."""
    values = {f"model.{key}": value for key, value in asdict(model_settings).items()}
    values |= {f"train.{key}": value for key, value in asdict(settings).items()}
    values |= {"init_from": base.name if base else SCRATCH, "the token data": data.digest()}
    if base:
        values[BASE_WEIGHTS] = base.digest()
    return RunIdentity(values | code_digests())


def build_trainer(
    model_settings: ModelSettings,
    settings: TrainSettings,
    data: TokenData,
    machine: Machine,
    base: PretrainedModel | None,
) -> Trainer:
    """A trainer whose weights have yet to be initialized or restored."""
    vocab_size = data.meta.vocab_size
    if base:
        config = base.config_for(vocab_size, model_settings.context, model_settings.dropout)
    else:
        head_size = model_settings.width // model_settings.heads
        shape = {key: value for key, value in asdict(model_settings).items() if key != "init"}
        eps = FAMILIES[model_settings.arch].norm_eps
        config = ModelConfig(**shape, vocab_size=vocab_size, head_size=head_size, norm_eps=eps)
    model = Transformer(config)
    trainer = Trainer(model, data, settings, machine)
    print(
        f"model: {config.arch}, {config.layers} layers of width {config.width}, "
        f"{trainer.num_parameters:,} parameters, vocabulary {vocab_size:,}\n"
        f"{describe_data(trainer)}\n"
        f"plan: {settings.epochs} epochs = {trainer.total_steps:,} steps of "
        f"{trainer.batches.tokens_per_step:,} tokens on {machine.device.type} "
        f"({machine.precision}, {machine.threads} threads)"
    )
    if settings.adapt == "lora":
        share = trainer.num_trained / trainer.num_parameters
        print(
            f"adapters: rank {settings.lora_rank} on {settings.lora_targets}, "
            f"{trainer.num_trained:,} trained parameters, {share:.2%} of the model's"
        )
    return trainer


def describe_data(trainer: Trainer) -> str:
    """A line about the training data."""
    data, batches = trainer.data, trainer.batches
    tokens = f"{len(data.train):,} training tokens, {len(data.val):,} validation tokens"
    if data.documents:
        return (
            f"documents: {data.documents.train:,} for training in {batches.num_windows:,} rows, "
            f"{data.documents.val:,} for validation ({tokens})"
        )
    if not data.records:
        return f"text: {tokens}"
    too_long = f", {batches.too_long:,} too long for the context left out"
    return (
        f"records: {data.records.train:,} for training in {batches.num_windows:,} rows"
        f"{too_long if batches.too_long else ''}, "
        f"{data.records.val:,} for validation ({tokens}); completions alone are learned"
    )


def resume(trainer: Trainer, store: ResumeStore) -> bool:
    """Restore the stored state, if any, and log that; returns whether there was one."""
    state, message = store.load(partial(check_state, trainer=trainer))
    if state is not None:
        warning = trainer.restore(state)
        step = f"step {trainer.progress.step:,} of {trainer.total_steps:,}"
        message = (
            f"already finished at {step}" if trainer.progress.finished else f"continuing at {step}"
        )
        message += f"; {warning}" if warning else ""
    print(f"run {store.identity.fingerprint}: {message}")
    append_missing_lines(
        paths.TRAINING_LOG,
        [*lines_of(trainer), f"{timestamp()}  run {store.identity.fingerprint}: {message}"],
    )
    return state is not None


def lines_of(trainer: Trainer) -> list[str]:
    """The lines of `training.log`, one for each validation."""
    return log_lines(trainer.progress, trainer.settings, trainer.validator)


def train(
    trainer: Trainer,
    store: ResumeStore,
    model_settings: ModelSettings,
    files: FileVersions,
    stop: StopSignal,
    checkpoint_steps: int,
) -> int:
    """Train, save the state and write the outputs; returns the exit code."""

    def save() -> None:
        files.check()  # the state of a run holds nothing learned from other tokens
        store.save(trainer.state_dict())
        publish(trainer, model_settings, store.identity)

    publish(trainer, model_settings, store.identity)
    try:
        trainer.fit(save, stop.requested, checkpoint_steps, Reporter(trainer))
        save()
    except (UserError, NotFiniteError) as error:
        user_error = error if isinstance(error, UserError) else diverged(error, trainer.settings)
        with suppress(UserError):  # such as a full disk; the first error matters more
            append_missing_lines(paths.TRAINING_LOG, [f"{timestamp()}  {user_error}"])
        raise user_error from error
    finally:
        paths.PROGRESS.unlink(missing_ok=True)
    progress = trainer.progress
    if progress.finished:
        print(f"best epoch {progress.best_epoch}, written to {paths.shown(paths.CHECKPOINT)}")
        return 0
    print(
        f"stopped after step {progress.step:,} of {trainer.total_steps:,}; everything is saved. "
        "Run the same command again to continue."
    )
    return 128 + stop.number


def publish(trainer: Trainer, model_settings: ModelSettings, identity: RunIdentity) -> None:
    """Write the stage's outputs from the run's state; the same state gives the same bytes."""
    append_missing_lines(paths.TRAINING_LOG, lines_of(trainer))
    progress, batches, data = trainer.progress, trainer.batches, trainer.data
    if not batches.epochs_done(progress.step):
        return
    metrics = summary(progress, batches, trainer.validator) | {
        "parameters": trainer.num_parameters,
        "trained_parameters": trainer.num_trained,
    }
    provenance = {
        "init_from": identity.ingredients["init_from"],
        "base_sha256": identity.ingredients.get(BASE_WEIGHTS),
        "model": asdict(model_settings),
        "train": asdict(trainer.settings),
        "data": data.meta.to_json(),
        "metrics": metrics,
    }
    tokenizer = data.meta.tokenizer.stored(data.vocabulary)
    Checkpoint(trainer.model.config, trainer.best, tokenizer, provenance).save(paths.CHECKPOINT)
    write_json(paths.TRAIN_METRICS, {"model": artifact_id(paths.CHECKPOINT)} | metrics)
    write_tsv(paths.LOSS_CURVE, CURVE, progress.curve)


def diverged(error: NotFiniteError, settings: TrainSettings) -> UserError:
    """The message for a loss, gradient or weight that is not finite."""
    return UserError(
        f"{error}, so the step was not taken. The usual causes are too high a learning rate "
        f"(train.lr is {settings.lr:g}), too short a warm-up (train.warmup_steps is "
        f"{settings.warmup_steps}) or too little precision (train.precision is "
        f"{settings.precision}); change one and run the same command again."
    )


def out_of_memory(
    error: RuntimeError, settings: TrainSettings, model_settings: ModelSettings
) -> Exception:
    """The message for a failed allocation; any other error is returned unchanged."""
    if "memory" not in str(error):
        return error
    return UserError(
        f"there is not enough memory for batches of train.batch_size {settings.batch_size} windows "
        f"of model.context {model_settings.context} tokens; lower train.batch_size and raise "
        "train.accumulate by as much, or take a smaller model."
    )


if __name__ == "__main__":
    run_stage(main)
