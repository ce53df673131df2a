"""Stage `train`: tokens -> `models/checkpoint.pt`, `metrics/train.json`, `metrics/loss.tsv`.

Continues by itself where an earlier run with the same settings, text and code was stopped.
"""

import signal
import time
from contextlib import suppress
from dataclasses import asdict
from types import FrameType

from stages.lm.core import paths
from stages.lm.core.errors import UserError, run_stage
from stages.lm.core.files import write_json
from stages.lm.data.dataset import TokenData
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.metrics import append_missing_lines, timestamp, write_tsv
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.model.transformer import ModelConfig, Transformer
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.recipes import automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.train import TrainSettings
from stages.lm.training.resume import ResumeStore, RunIdentity, code_digests, only_trainer
from stages.lm.training.trainer import Trainer

BASE_WEIGHTS = "the base weights"
"""Their name among a run's ingredients."""
CURVE = ("step", "epoch", "train_loss", "val_loss", "lr")


class StopSignal:
    """Remembers that SIGINT or SIGTERM came, so that the step in progress can end first."""

    def __init__(self) -> None:
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number

    def requested(self) -> bool:
        """Whether a signal came."""
        return self.number != 0


class Reporter:
    """Writes once a second how far the run is, for the page to show."""

    def __init__(self, run: Trainer) -> None:
        self.run = run
        self.due = time.monotonic()

    def __call__(self, loss: float, speed: float) -> None:
        """See `Trainer.run`."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + 1
        run = self.run
        left = (run.total_steps - run.progress.step) * run.order.batch * run.order.length
        figures = {
            "step": run.progress.step,
            "steps": run.total_steps,
            "epoch": run.epochs_done() + 1,
            "epochs": run.settings.epochs,
            "loss": loss,
            "tokens_per_second": speed,
            "seconds_left": left / speed if speed else None,
        }
        with suppress(UserError):  # nothing depends on it
            write_json(paths.PROGRESS, figures)


def main() -> int:
    """Train, or continue to; returns the exit code."""
    runtime = load_section(RuntimeSettings)
    stop = StopSignal()
    with only_trainer(paths.ROOT / "models" / "resume" / "workspace.lock"):
        data = TokenData.load(paths.TOKENS)
        init_from = load_init_from()
        base = None if init_from == SCRATCH else PretrainedModel.open(init_from)
        auto = automatic(data.text_bytes(), base=base.fixed_settings() if base else {})
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
                run = prepare(model_settings, settings, data, machine, base)
                if not resume(run, store):
                    run.begin(
                        from_bigrams=model_settings.init == "bigrams",
                        weights=base.state_dict(run.model.config) if base else None,
                    )
                return train(run, store, model_settings, stop, runtime.checkpoint_steps)
            except RuntimeError as error:
                raise out_of_memory(error, settings, model_settings) from error


def identify(
    model_settings: ModelSettings,
    settings: TrainSettings,
    data: TokenData,
    base: PretrainedModel | None,
) -> RunIdentity:
    """Everything the trained weights are a function of."""
    values = {f"model.{key}": value for key, value in asdict(model_settings).items()}
    values |= {f"train.{key}": value for key, value in asdict(settings).items()}
    values |= {"init_from": base.name if base else SCRATCH, "the token data": data.digest()}
    if base:
        values[BASE_WEIGHTS] = base.digest()
    return RunIdentity(values | code_digests())


def prepare(
    model_settings: ModelSettings,
    settings: TrainSettings,
    data: TokenData,
    machine: Machine,
    base: PretrainedModel | None,
) -> Trainer:
    """A run that has yet to begin or to be resumed."""
    vocab_size = data.meta.vocab_size
    if base:
        config = base.config_for(vocab_size, model_settings.context, model_settings.dropout)
    else:
        head_size = model_settings.width // model_settings.heads
        shape = {key: value for key, value in asdict(model_settings).items() if key != "init"}
        config = ModelConfig(**shape, vocab_size=vocab_size, head_size=head_size)
    model = Transformer(config)
    run = Trainer(model, data, settings, machine)
    print(
        f"model: {config.arch}, {config.layers} layers of width {config.width}, "
        f"{run.parameters:,} parameters, vocabulary {vocab_size:,}\n"
        f"{contents(run)}\n"
        f"plan: {settings.epochs} epochs = {run.total_steps:,} steps of "
        f"{run.order.batch * run.order.length:,} tokens on {machine.device.type} "
        f"({machine.precision}, {machine.threads} threads)"
    )
    if settings.adapt == "lora":
        share = run.trained_parameters() / run.parameters
        print(
            f"adapters: rank {settings.lora_rank} on {settings.lora_targets}, "
            f"{run.trained_parameters():,} trained parameters, {share:.2%} of the model's"
        )
    return run


def contents(run: Trainer) -> str:
    """In words, what the run learns from."""
    data = run.data
    tokens = f"{len(data.train):,} training tokens, {len(data.val):,} validation tokens"
    if not data.records:
        return f"text: {tokens}"
    rows = len(run.tokens) // (run.order.context + 1)
    left_out = f", {run.left_out:,} too long for the context left out" if run.left_out else ""
    return (
        f"records: {data.records.train:,} for training in {rows:,} rows{left_out}, "
        f"{data.records.val:,} for validation ({tokens}); completions alone are learned"
    )


def resume(run: Trainer, store: ResumeStore) -> bool:
    """Continue from the stored state, if there is one, and say so; returns whether there was."""
    state, message = store.load()
    if state is not None:
        warning = run.restore(state)
        place = f"step {run.progress.step:,} of {run.total_steps:,}"
        message = (
            f"already finished at {place}" if run.progress.finished else f"continuing at {place}"
        )
        message += f"; {warning}" if warning else ""
    print(f"run {store.identity.fingerprint}: {message}")
    append_missing_lines(
        paths.TRAINING_LOG,
        [*run.progress.log, f"{timestamp()}  run {store.identity.fingerprint}: {message}"],
    )
    return state is not None


def train(
    run: Trainer,
    store: ResumeStore,
    model_settings: ModelSettings,
    stop: StopSignal,
    checkpoint_steps: int,
) -> int:
    """Run the loop, saving and publishing; returns the exit code."""

    def save() -> None:
        store.save(run.state())
        publish(run, model_settings, store.identity)

    publish(run, model_settings, store.identity)
    try:
        run.run(save, stop.requested, checkpoint_steps, Reporter(run))
    except UserError as error:
        with suppress(UserError):  # a full disk, say; what stopped the run matters more
            append_missing_lines(paths.TRAINING_LOG, [f"{timestamp()}  {error}"])
        raise
    finally:
        paths.PROGRESS.unlink(missing_ok=True)
    save()
    if run.progress.finished:
        print(f"best epoch {run.progress.best_epoch}, written to {paths.shown(paths.CHECKPOINT)}")
        return 0
    print(
        f"stopped after step {run.progress.step:,} of {run.total_steps:,}; everything is saved. "
        "Run the same command again to continue."
    )
    return 128 + stop.number


def publish(run: Trainer, model_settings: ModelSettings, identity: RunIdentity) -> None:
    """Write the stage's outputs from the run's state; the same state gives the same bytes."""
    append_missing_lines(paths.TRAINING_LOG, run.progress.log)
    if not run.epochs_done():
        return
    provenance = {
        "init_from": identity.ingredients["init_from"],
        "base_sha256": identity.ingredients.get(BASE_WEIGHTS),
        "model": asdict(model_settings),
        "train": asdict(run.settings),
        "data": run.data.meta.to_json(),
        "metrics": run.summary(),
    }
    tokenizer = asdict(run.data.meta.tokenizer) | {"vocabulary": run.data.vocabulary}
    Checkpoint(run.model.config, run.best, tokenizer, provenance).save(paths.CHECKPOINT)
    write_json(paths.TRAIN_METRICS, run.summary())
    write_tsv(paths.LOSS_CURVE, CURVE, run.progress.curve)


def out_of_memory(
    error: RuntimeError, settings: TrainSettings, model_settings: ModelSettings
) -> Exception:
    """A sentence for an allocation that failed; any other error as it is."""
    if "memory" not in str(error):
        return error
    return UserError(
        f"there is not enough memory for batches of train.batch_size {settings.batch_size} windows "
        f"of model.context {model_settings.context} tokens; lower train.batch_size and raise "
        "train.accumulate by as much, or take a smaller model."
    )


if __name__ == "__main__":
    run_stage(main)
