"""A run can stop anywhere and end as if it had not; it learns, and refuses to learn nonsense."""

import math

import numpy as np
import pytest
import torch

from stages.lm.artifact import read_artifact, write_artifact
from stages.lm.data import TokenData
from stages.lm.errors import UserError
from stages.lm.scoring import score
from stages.lm.training import Progress, TrainingRun

WALL_CLOCK = {"elapsed", "log"}


@pytest.fixture(scope="module")
def data():
    """A text that repeats itself with noise: there is something to learn in few steps."""
    random = np.random.Generator(np.random.Philox(1))
    tokens = np.tile(np.arange(30, dtype="<u2"), 40)
    noise = random.random(len(tokens)) < 0.1
    tokens[noise] = random.integers(0, 75, noise.sum())
    train, val, test = np.split(tokens, [800, 1000])
    meta = {
        "vocab_size": 75,
        "splits": {"val": {"tokens": len(val), "bytes": 3 * len(val)}},
    }
    return TokenData(train=train, val=val, test=test, meta=meta, vocabulary="")


@pytest.fixture
def make_run(initialised_model, make_train_settings, machine, data):
    def make(arch="qwen3", dropout=0.1, model_seed=0, **fields):
        model = initialised_model(arch, seed=model_seed, dropout=dropout)
        settings = make_train_settings(**{"accumulate": 2} | fields)
        torch.manual_seed(settings.seed)
        return TrainingRun(model, data, settings, machine)

    return make


@pytest.fixture
def trained(make_run):
    """Made and run at once: dropout draws from torch's one generator, seeded when a run is made."""

    def train(*args, save=None, checkpoint_steps=0, **fields):
        run = make_run(*args, **fields)
        run.run(lambda: save(run) if save else None, never, checkpoint_steps)
        return run

    return train


def never():
    return False


def after(steps):
    """Asks for a stop when it was asked `steps` times."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) == steps


def nothing():
    """A `save` that saves nothing."""


def outcome(run):
    """Everything that must not depend on interruptions."""
    progress = {k: v for k, v in vars(run.progress).items() if k not in WALL_CLOCK}
    return progress, run.model.state_dict(), run.best, run.optimizers.state_dict()


def assert_equal(first, second):
    progress, *tensors = outcome(first)
    other_progress, *other_tensors = outcome(second)
    assert progress == other_progress
    for group, other in zip(tensors, other_tensors, strict=True):
        torch.testing.assert_close(group, other, rtol=0, atol=0)
    assert len(first.progress.log) == len(second.progress.log)
    assert first.summary() == second.summary()


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def arch(request):
    return request.param


@pytest.mark.parametrize("steps", [1, 6, 7, 8, 13, 20])
def test_a_stopped_run_continues_as_if_it_had_not(make_run, trained, tmp_path, arch, steps):
    straight = trained(arch)
    assert straight.total_steps == 20 and straight.progress.finished

    stopped = make_run(arch)
    stopped.run(nothing, after(steps))
    assert stopped.progress.step == steps
    write_artifact(tmp_path / "state.pt", "training state", 1, stopped.state())

    continued = make_run(arch, model_seed=99)
    torch.manual_seed(12345)
    warning = continued.restore(read_artifact(tmp_path / "state.pt", {"training state": 1})[1])
    assert warning == ""
    continued.run(nothing, never)
    assert_equal(straight, continued)


def test_a_run_stopped_after_every_step_continues_as_if_it_had_not(make_run, trained, tmp_path):
    straight = trained()
    state = None
    for _ in range(straight.total_steps):
        piece = make_run(model_seed=99 if state else 0)
        if state is not None:
            piece.restore(state)
        piece.run(nothing, after(1))
        write_artifact(tmp_path / "state.pt", "training state", 1, piece.state())
        state = read_artifact(tmp_path / "state.pt", {"training state": 1})[1]
    assert_equal(straight, piece)


def test_saving_often_does_not_change_the_run(trained):
    states = []
    quiet = trained()
    saved = trained(save=lambda run: states.append(run.state()), checkpoint_steps=1)
    assert len(states) > saved.total_steps
    assert_equal(quiet, saved)


def test_a_state_is_due_every_so_many_steps_and_at_every_epochs_end(trained):
    steps = []
    run = trained(save=lambda run: steps.append(run.progress.step), checkpoint_steps=5)
    ends = [row["step"] for row in run.progress.curve if "val_loss" in row]
    assert len(ends) == 3 and sorted(set(steps)) == sorted({5, 10, 15, 20} | set(ends))
    steps.clear()
    trained(save=lambda run: steps.append(run.progress.step))
    assert steps == ends


def test_a_finished_run_restored_does_nothing_more(make_run):
    run = make_run()
    run.run(nothing, never)
    again = make_run(model_seed=99)
    again.restore(run.state())
    again.run(lambda: pytest.fail("saved again"), lambda: pytest.fail("took a step"))
    assert_equal(run, again)


@pytest.mark.parametrize(
    ("key", "value"), [("threads", 64), ("torch", "1.0"), ("device", "cuda"), ("precision", "bf16")]
)
def test_another_machine_is_one_warning(make_run, key, value):
    run = make_run()
    state = run.state()
    state["machine"] = state["machine"] | {key: value}
    here = run.machine.describe()[key]
    assert f"{key} was {value}, is {here}" in make_run().restore(state)


def test_the_same_settings_train_the_same_weights_and_another_seed_others(trained):
    runs = [trained(seed=seed) for seed in (1, 1, 2)]
    assert_equal(runs[0], runs[1])
    head = [run.model.state_dict()["head.weight"] for run in runs]
    assert not torch.equal(head[0], head[2])


# Learning -----------------------------------------------------------------------------------------


def test_the_loss_falls(make_run, arch):
    run = make_run(arch, epochs=8, dropout=0.0)
    before = run.validate()
    run.run(nothing, never)
    assert before == pytest.approx(math.log(75), abs=0.1)
    assert run.progress.best_val_loss < before - 1
    assert run.progress.curve[-1]["train_loss"] < run.progress.curve[0]["train_loss"] - 1


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_batches_train_as_one_large_batch(make_run, accumulate):
    whole = make_run(batch_size=8, accumulate=1, dropout=0.0)
    parts = make_run(batch_size=8 // accumulate, accumulate=accumulate, dropout=0.0)
    for run in (whole, parts):
        run.run(nothing, after(4))
    torch.testing.assert_close(
        whole.model.state_dict(), parts.model.state_dict(), atol=1e-4, rtol=1e-3
    )
    assert whole.progress.row_losses == pytest.approx(parts.progress.row_losses, abs=1e-4)


def test_the_gradient_is_clipped_to_its_largest_norm(make_run, monkeypatch):
    run = make_run(grad_clip=0.01, dropout=0.0)
    norms = []
    real = run.optimizers.step

    def step(rate):
        gradients = [p.grad.flatten() for p in run.model.parameters()]
        norms.append(torch.cat(gradients).norm().item())
        real(rate)

    monkeypatch.setattr(run.optimizers, "step", step)
    run.run(nothing, after(3))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_learning_rate_of_the_curve_is_that_of_the_schedule(make_run):
    run = make_run(lr=0.01, warmup_steps=2, decay_fraction=0.5, final_lr_fraction=0.1)
    used = []
    real = run.optimizers.step

    def step(rate):
        real(rate)
        used.append(run.optimizers.all[0].param_groups[0]["lr"])

    run.optimizers.step = step
    run.run(nothing, never)
    for row in run.progress.curve:
        assert row["lr"] == used[row["step"] - 1]
    assert max(used) == 0.01 and used[0] < used[1] < used[2] and used[-1] < 0.002


def test_the_curve_covers_every_step_once_in_order(make_run):
    run = make_run(batch_size=1, accumulate=1, epochs=2)
    losses = []
    real = run._step
    run._step = lambda: losses.append(real()) or losses[-1]
    run.run(nothing, never)
    steps = [row["step"] for row in run.progress.curve]
    assert steps == sorted(set(steps)) and steps[-1] == run.total_steps == len(losses)
    begin = 0
    for row in run.progress.curve:
        assert row["train_loss"] == pytest.approx(np.mean(losses[begin : row["step"]]))
        begin = row["step"]
    assert 18 <= len(steps) <= 22


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps(make_run):
    run = make_run(epochs=2)
    losses = []
    real = run._step
    run._step = lambda: losses.append(real()) or losses[-1]
    run.run(nothing, never)
    begin = 0
    for row in (row for row in run.progress.curve if "val_loss" in row):
        assert row["epoch_loss"] == pytest.approx(np.mean(losses[begin : row["step"]]))
        begin = row["step"]


def test_an_epoch_shorter_than_a_batch_ends_with_the_run(make_run):
    run = make_run(batch_size=400, accumulate=1, epochs=2)
    run.run(nothing, never)
    assert run.total_steps == 1 and run.epochs_done() == 2 and run.summary()["epochs"] == 2


# Choosing -----------------------------------------------------------------------------------------


def scripted(run, monkeypatch, losses):
    """Makes the run believe these validation losses, and keeps its weights of each epoch."""
    weights, script = [], iter(losses)

    def validate():
        weights.append({k: v.clone() for k, v in run.model.state_dict().items()})
        return next(script)

    monkeypatch.setattr(run, "validate", validate)
    return weights


def test_the_best_weights_are_those_of_the_best_epoch(make_run, monkeypatch):
    run = make_run(epochs=5)
    weights = scripted(run, monkeypatch, [3.0, 2.0, 2.5, 2.0, 4.0])
    run.run(nothing, never)
    assert (run.progress.best_epoch, run.progress.best_val_loss) == (2, 2.0)
    torch.testing.assert_close(run.best, weights[1], rtol=0, atol=0)
    assert not torch.equal(run.best["head.weight"], run.model.state_dict()["head.weight"])
    assert run.summary()["best_epoch"] == 2 and run.summary()["val_loss"] == 4.0


def test_patience_ends_the_run_and_says_so(make_run, monkeypatch):
    run = make_run(epochs=9, patience=2)
    scripted(run, monkeypatch, [3.0, 2.0, 2.5, 2.1, 1.0])
    run.run(nothing, never)
    assert run.progress.finished and run.epochs_done() == 4
    assert "stopped: no better epoch since 2" in run.progress.log[-1]
    assert run.progress.step < run.total_steps


def test_without_patience_the_run_never_stops_early(make_run, monkeypatch):
    run = make_run(epochs=5, patience=0)
    scripted(run, monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    run.run(nothing, never)
    assert run.epochs_done() == 5 and len(run.progress.log) == 5


def test_patience_counts_over_a_resume(make_run, monkeypatch):
    run = make_run(epochs=9, patience=2)
    scripted(run, monkeypatch, [2.0, 2.5])
    run.run(nothing, lambda: len(run.progress.log) == 2)
    again = make_run(epochs=9, patience=2)
    again.restore(run.state())
    scripted(again, monkeypatch, [2.2])
    again.run(nothing, never)
    assert again.progress.finished and again.epochs_done() == 3


def test_validation_scores_the_split_with_what_precedes_it(make_run, data, machine):
    run = make_run()
    nats, tokens = score(run.model, data.val, data.train[-16:], machine)
    assert tokens == len(data.val) and run.validate() == nats / tokens


# Refusing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step(make_run, value):
    run = make_run()
    run.run(nothing, after(3))
    with torch.no_grad():
        run.model.final_norm.weight[0] = value
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(UserError, match=r"stopped at step 4: the loss is nan.*train\.lr is 0\.01"):
        run.run(lambda: pytest.fail("saved"), never)
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert run.progress.step == 3


def test_a_gradient_that_is_no_number_stops_before_the_step(make_run):
    run = make_run()
    run.run(nothing, after(2))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(UserError, match="stopped at step 3: the norm of the gradient is nan"):
        run.run(nothing, never)
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)


def test_a_validation_loss_that_is_no_number_is_never_the_best(make_run, monkeypatch):
    run = make_run()
    scripted(run, monkeypatch, [2.0, math.nan])
    with pytest.raises(UserError, match="the validation loss is nan"):
        run.run(nothing, never)
    assert run.progress.best_val_loss == 2.0 and run.progress.best_epoch == 1


# Summary ------------------------------------------------------------------------------------------


def test_the_summary_depends_on_nothing_but_the_run(make_run):
    run = make_run()
    run.run(nothing, never)
    summary = run.summary()
    assert summary["steps"] == 20 and summary["tokens_seen"] == 20 * 8 * 16
    assert summary["parameters"] == run.model.parameter_count()
    bits = run.progress.best_val_loss / 3 / math.log(2)
    assert summary["best_val_bits_per_byte"] == pytest.approx(bits, abs=1e-5)


def test_fresh_progress_shares_nothing():
    first, second = Progress(), Progress()
    first.curve.append({})
    assert second.curve == [] and first.best_val_loss == math.inf


def test_bf16_learns_and_keeps_its_weights_in_float32(make_run, machine):
    run = make_run(epochs=6, dropout=0.0)
    run.machine = type(machine)(machine.device, "bf16", machine.threads)
    before = run.validate()
    run.run(nothing, never)
    assert run.progress.best_val_loss < before - 0.5
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
