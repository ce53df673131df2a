"""A run can stop after any step and continue to the same result; it stops if a loss is NaN."""

import copy
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stages.lm.core.artifact import read_artifact, write_artifact
from stages.lm.model.runtime import can_compile
from stages.lm.model.scoring import score
from stages.lm.training import compilation, trainer
from stages.lm.training.calibration import RIDGE, rescaled
from stages.lm.training.history import Progress, log_lines, summary
from stages.lm.training.trainer import NotFiniteError, Trainer

WALL_CLOCK = {"elapsed", "log"}


@pytest.fixture
def make_run(initialised_model, make_train_settings, machine, data):
    def make(arch="qwen3", dropout=0.1, model_seed=0, **fields):
        model = initialised_model(arch, seed=model_seed, dropout=dropout)
        settings = make_train_settings(**{"accumulate": 2} | fields)
        torch.manual_seed(settings.seed)
        return Trainer(model, data, settings, machine)

    return make


@pytest.fixture
def begun(make_run):
    """Makes a run and initializes it; neither the model nor torch's generator was seeded."""

    def make(init="looking_back", **fields):
        run = make_run(model_seed=99, **fields)
        torch.seed()
        run.initialize(init)
        return run

    return make


@pytest.fixture
def trained(make_run):
    """Makes and trains at once: dropout uses torch's global generator, seeded by each run."""

    def train(*args, save=None, checkpoint_steps=0, **fields):
        run = make_run(*args, **fields)
        run.fit(lambda: save(run) if save else None, never, checkpoint_steps)
        return run

    return train


def lines(run):
    """The lines of the run's log."""
    return log_lines(run.progress, run.settings, run.validator)


def summary_of(run):
    return summary(run.progress, run.batches, run.validator)


def never():
    return False


def after(steps):
    """Requests a stop at its `steps`-th call."""
    asked = iter(range(1, steps + 1))
    return lambda: next(asked) == steps


def nothing():
    """A `save` that saves nothing."""


def outcome(run):
    """Everything that must be the same with and without interruptions."""
    progress = {k: v for k, v in vars(run.progress).items() if k not in WALL_CLOCK}
    return progress, run.model.state_dict(), run.best, run.optimizers.state_dict()


def assert_equal(first, second):
    progress, *tensors = outcome(first)
    other_progress, *other_tensors = outcome(second)
    assert progress == other_progress
    for group, other in zip(tensors, other_tensors, strict=True):
        torch.testing.assert_close(group, other, rtol=0, atol=0)
    assert len(first.progress.log) == len(second.progress.log)
    assert summary_of(first) == summary_of(second)


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def arch(request):
    return request.param


@pytest.mark.parametrize("steps", [1, 8, 20])
def test_a_stopped_run_continues_to_the_same_result(make_run, trained, tmp_path, arch, steps):
    straight = trained(arch)
    assert straight.total_steps == 20 and straight.progress.finished

    stopped = make_run(arch)
    stopped.fit(nothing, after(steps))
    assert stopped.progress.step == steps
    write_artifact(tmp_path / "state.pt", "training state", 1, stopped.state_dict())

    continued = make_run(arch, model_seed=99)
    torch.manual_seed(12345)
    warning = continued.restore(read_artifact(tmp_path / "state.pt", {"training state": 1})[1])
    assert warning == ""
    continued.fit(nothing, never)
    assert_equal(straight, continued)


@pytest.mark.parametrize(
    ("optimizer", "init"),
    [
        ("muon", "looking_back"),
        ("adamw", "random"),
        pytest.param("muon", "random", marks=pytest.mark.slow),
        pytest.param("adamw", "looking_back", marks=pytest.mark.slow),
    ],
)
def test_a_run_stopped_after_every_step_continues_to_the_same_result(
    begun, make_run, tmp_path, optimizer, init
):
    fields = {"optimizer": optimizer, "ema_decay": 0.9, "split_tokens": 0.3, "calibrate": True}
    fields["share_spellings"] = True
    straight = begun(init, **fields)
    straight.fit(nothing, never)
    assert straight.settings.accumulate == 2 and straight.model.config.dropout > 0
    piece = begun(init, **fields)
    for _ in range(straight.total_steps):
        piece.fit(nothing, after(1))
        write_artifact(tmp_path / "state.pt", "training state", 1, piece.state_dict())
        piece = make_run(model_seed=98, **fields)
        torch.manual_seed(12345)
        assert piece.restore(read_artifact(tmp_path / "state.pt", {"training state": 1})[1]) == ""
    assert_equal(straight, piece)


def test_saving_often_does_not_change_the_run(trained):
    states = []
    quiet = trained()
    saved = trained(save=lambda run: states.append(run.state_dict()), checkpoint_steps=1)
    assert len(states) > saved.total_steps
    assert_equal(quiet, saved)


def test_the_state_is_saved_every_checkpoint_steps_and_after_every_epoch(trained):
    steps = []
    run = trained(save=lambda run: steps.append(run.progress.step), checkpoint_steps=5)
    ends = [row["step"] for row in run.progress.curve if "val_loss" in row]
    assert len(ends) == 3 and sorted(set(steps)) == sorted({5, 10, 15, 20} | set(ends))
    steps.clear()
    trained(save=lambda run: steps.append(run.progress.step))
    assert steps == ends


def test_a_finished_run_restored_does_nothing_more(make_run):
    run = make_run()
    run.fit(nothing, never)
    again = make_run(model_seed=99)
    again.restore(run.state_dict())
    again.fit(lambda: pytest.fail("saved again"), lambda: pytest.fail("took a step"))
    assert_equal(run, again)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("threads", 64), ("torch", "1.0"), ("device", "cuda"), ("precision", "bf16")],
        ("compiled", True),
    ],
)
def test_continuing_on_another_machine_gives_one_warning(make_run, key, value):
    run = make_run()
    state = run.state_dict()
    state["machine"] = state["machine"] | {key: value}
    here = run.describe_machine()[key]
    assert f"{key} was {value}, is {here}" in make_run().restore(state)


def test_the_same_settings_train_the_same_weights_and_another_seed_others(trained):
    runs = [trained(seed=seed) for seed in (1, 1, 2)]
    assert_equal(runs[0], runs[1])
    head = [run.model.state_dict()["head.weight"] for run in runs]
    assert not torch.equal(head[0], head[2])


# Beginning ----------------------------------------------------------------------------------------


def test_the_seed_alone_decides_the_first_weights(make_run, begun, initialised_model, arch):
    run = make_run(arch, model_seed=99, seed=7)
    run.initialize("random")
    expected = initialised_model(arch, seed=7).state_dict()
    torch.testing.assert_close(run.model.state_dict(), expected, rtol=0, atol=0)
    weights = [begun(seed=seed).model.state_dict() for seed in (7, 7, 8)]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])


def test_the_bigram_start_is_validated_before_the_first_step(begun):
    run = begun()
    loss = run.validator.loss()
    assert loss < math.log(75) - 1
    assert run.progress.curve == [{"step": 0, "epoch": 0, "val_loss": loss}]
    (line,) = lines(run)
    assert (
        f"looking back  val {loss:.4f}" in line
        and f"{run.validator.bits_per_byte(loss):.4f} bits/" in line
    )
    assert run.progress.step == 0 and run.progress.best_epoch == 0
    assert run.progress.best_val_loss == loss
    torch.testing.assert_close(run.best, run.model.state_dict(), rtol=0, atol=0)


def test_the_seconds_of_the_bigram_start_are_counted(begun, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    run = begun()
    assert run.progress.elapsed == 10 and lines(run)[0].endswith("0:00:10 elapsed")
    run.fit(nothing, after(1))
    assert run.progress.elapsed >= 20


def test_random_weights_are_not_validated_before_the_first_step(begun):
    progress = begun("random").progress
    assert progress == Progress()


def test_the_bigram_start_is_kept_if_no_epoch_is_better(begun):
    run = begun(lr=9.0, embedding_lr=9.0, head_lr=9.0, grad_clip=0.0)
    start = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    run.fit(nothing, never)
    assert run.progress.best_epoch == 0
    torch.testing.assert_close(run.best, start, rtol=0, atol=0)


def test_the_ema_weights_are_validated_and_kept(begun):
    run = begun(ema_decay=0.9)
    weights, expected = list(run.model.parameters()), []
    run.model.train()
    for step in range(run.total_steps):
        if step == run.total_steps - 1:
            break
        run._step()
        run.progress.step += 1
        memory = min(0.9, (step + 1) / (step + 10))
        now = [weight.detach().clone() for weight in weights]
        expected = expected or now
        expected = [a * memory + b * (1 - memory) for a, b in zip(expected, now, strict=True)]
    torch.testing.assert_close(run.ema.averages, expected, rtol=1e-4, atol=1e-6)
    trained = [weight.detach().clone() for weight in weights]
    with run.ema.ema_weights():
        loss = run.validator.loss()
        assert all(map(torch.equal, weights, run.ema.averages))
    assert all(map(torch.equal, weights, trained)) and loss != run.validator.loss()


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_kept_weights_are_calibrated_and_training_is_not_affected(trained, arch, average):
    plain = trained(arch, ema_decay=average)
    run = trained(arch, ema_decay=average, calibrate=True)
    torch.testing.assert_close(run.model.state_dict(), plain.model.state_dict(), rtol=0, atol=0)
    assert run.progress.best_epoch == plain.progress.best_epoch == 3
    assert plain.factors.eq(1).all() and not run.factors.eq(1).any()
    for name, weight in plain.best.items():
        factors = run.factors if name.startswith("final_norm") else 1
        torch.testing.assert_close(run.best[name], weight * factors, rtol=0, atol=0)

    run.model.load_state_dict(run.best)
    plain.model.load_state_dict(plain.best)
    assert run.validator.loss() == run.progress.best_val_loss < plain.validator.loss()
    for other in (0.95, 1.05):
        with rescaled(run.model, torch.full_like(run.factors, other)):
            assert run.validator.loss() > run.progress.best_val_loss
    assert run.validator.loss() == run.progress.best_val_loss


@pytest.mark.parametrize("surer", [0.3, 1.0, 3.0])
def test_calibration_mends_a_model_that_is_too_sure_of_some_dimensions(trained, surer):
    run = trained(epochs=6)
    ones = torch.ones_like(run.factors)
    right = run.validator.calibrate(ones)
    with rescaled(run.model, right):
        lowest = run.validator.loss()
    with torch.no_grad():
        run.model.final_norm.weight[::2] *= surer
    exact = right.clone()
    exact[::2] /= surer  # would mend it wholly, but the ridge has its price
    price = RIDGE * exact.var(correction=0).item()
    first = run.validator.calibrate(ones)  # of one epoch; the next goes on from there
    with rescaled(run.model, run.validator.calibrate(first)):
        assert run.validator.loss() < lowest + price + 0.005


@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
def test_calibration_never_ends_worse_than_it_began(trained, start):
    run = trained()
    begin = torch.full_like(run.factors, start)
    losses = []
    for factors in (begin, run.validator.calibrate(begin)):
        with rescaled(run.model, factors):
            losses.append(run.validator.loss())
    assert losses[1] <= losses[0] and math.isfinite(losses[1])


def test_the_point_before_the_first_step_is_no_epoch(begun):
    run = begun()
    run.fit(nothing, never)
    steps = [row["step"] for row in run.progress.curve]
    assert steps == sorted(set(steps)) and steps[:1] == [0] and steps[-1] == run.total_steps
    assert sum("epoch_loss" in row for row in run.progress.curve) == run.settings.epochs
    assert len(run.progress.log) == 1 + run.settings.epochs
    assert summary_of(run)["epochs"] == run.settings.epochs


# Compiling ----------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """The devices for which `can_compile` was called; it returned False."""
    devices = []

    def no(device):
        devices.append(device)
        return False

    monkeypatch.setattr(compilation, "can_compile", no)
    return devices


@pytest.mark.parametrize(("setting", "pays"), [("on", True), ("off", False)])
def test_compile_on_and_off_are_obeyed(make_run, monkeypatch, asked, setting, pays):
    monkeypatch.setattr(compilation, "COMPILE_FROM_FLOPS", math.inf if pays else 0.0)
    make_run(compile=setting)
    assert len(asked) == pays


def test_only_a_long_run_compiles_by_itself_and_a_resumed_one_as_before(
    make_run, monkeypatch, asked
):
    run = make_run(compile="auto")
    assert not asked
    flops = 6 * run.model.parameter_count() * run.total_steps * 8 * 16
    monkeypatch.setattr(compilation, "COMPILE_FROM_FLOPS", flops)
    make_run(compile="auto")
    assert not asked
    make_run(compile="auto", epochs=4)
    assert len(asked) == 1
    monkeypatch.setattr(compilation, "COMPILE_FROM_FLOPS", flops - 1)
    run = make_run(compile="auto")
    run.fit(nothing, after(15))
    resumed = make_run(compile="auto")
    resumed.restore(run.state_dict())
    assert len(asked) == 3


@pytest.mark.parametrize(("passes", "pays"), [(2_000, False), (2_001, True)])
def test_a_run_on_a_gpu_compiles_where_it_goes_through_enough_batches(passes, pays):
    assert compilation.pays_to_compile("auto", "cuda", passes, flops=0.0) == pays


def test_passes_are_counted_in_micro_batches(make_run, monkeypatch):
    asked = []
    monkeypatch.setattr(compilation, "pays_to_compile", lambda *asks: bool(asked.append(asks)))
    run = make_run(compile="auto")
    assert asked[0][:3] == ("auto", "cpu", run.total_steps * run.settings.accumulate)


def test_a_compiled_run_on_a_cpu_is_deterministic(make_run, monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    try:
        assert make_run(compile="on").compiled
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_compiled_training_on_threads_is_reproducible(
    initialised_model, make_model, make_train_settings, machine, data
):
    """Without a fixed order of summation, threads give other last bits every time."""
    if not can_compile(machine.device):
        pytest.skip("no compiler")
    threads, gradients = torch.get_num_threads(), []
    settings = make_train_settings(batch_size=16, compile="on")
    shape = {"context": 128, "width": 64, "head_size": 16, "layers": 1}
    try:
        torch.set_num_threads(4)
        model = initialised_model(**shape)
        model.load_state_dict(make_model(**shape).state_dict())  # fresh ones have no such gradient
        run = Trainer(model, data, settings, machine)
        for _ in range(10):
            run._compute_gradients()
            gradients.append(model.token_embedding.weight.grad)
            model.zero_grad(set_to_none=True)
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients)


def test_a_machine_that_cannot_compile_trains_all_the_same(make_run, trained, monkeypatch, capsys):
    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nand a long story")

    expected = trained(compile="off")
    capsys.readouterr()
    monkeypatch.setattr(torch, "compile", broken)
    run = make_run(compile="on")
    assert capsys.readouterr().out.splitlines() == [
        "training without torch.compile, which does not work here: no C++ compiler"
    ]
    run.fit(nothing, never)
    assert not run.compiled and run.progress.finished
    assert_equal(expected, run)


@pytest.mark.parametrize(
    ("backend", "steps"), [("eager", 6), pytest.param("inductor", 1, marks=pytest.mark.slow)]
)
def test_a_compiled_model_trains_alike_and_continues_to_the_same_bits(
    make_config, make_train_settings, machine, data, initialised_model, monkeypatch, backend, steps
):
    """Stopped every few steps. The graph's code is the operators' own, or made in half a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    if not can_compile(machine.device):
        pytest.skip("torch.compile does not work here")

    def begun(compile, dropout=0.1):
        model = initialised_model(layers=1, dropout=dropout, seed=99)
        settings = make_train_settings(accumulate=2, epochs=2, compile=compile)
        run = Trainer(model, data, settings, machine)
        assert run.compiled == (compile == "on")
        run.initialize("looking_back")
        return run

    straight = begun("on")
    straight.fit(nothing, never)
    piece = begun("on")
    for _ in range(0, straight.total_steps, steps):
        piece.fit(nothing, after(steps))
        state = piece.state_dict()
        piece = begun("on")
        assert piece.restore(state) == ""
    assert_equal(straight, piece)

    compiled, plain = begun("on", dropout=0.0), begun("off", dropout=0.0)
    for run in (compiled, plain):
        run.fit(nothing, after(4))
    assert compiled.progress.point_losses == pytest.approx(plain.progress.point_losses, abs=1e-4)
    assert "compiled was False, is True" in compiled.restore(plain.state_dict())


# Learning -----------------------------------------------------------------------------------------


def test_the_loss_falls(make_run, arch):
    run = make_run(arch, epochs=8, dropout=0.0)
    before = run.validator.loss()
    run.fit(nothing, never)
    assert before == pytest.approx(math.log(75), abs=0.1)
    assert run.progress.best_val_loss < before - 1
    assert run.progress.curve[-1]["train_loss"] < run.progress.curve[0]["train_loss"] - 1


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_accumulated_batches_train_as_one_large_batch(make_run, accumulate):
    whole = make_run(batch_size=8, accumulate=1, dropout=0.0)
    parts = make_run(batch_size=8 // accumulate, accumulate=accumulate, dropout=0.0)
    for run in (whole, parts):
        run.fit(nothing, after(4))
    torch.testing.assert_close(
        whole.model.state_dict(), parts.model.state_dict(), atol=1e-4, rtol=1e-3
    )
    assert whole.progress.point_losses == pytest.approx(parts.progress.point_losses, abs=1e-4)


def test_the_gradient_is_clipped_to_its_largest_norm(make_run, monkeypatch):
    run = make_run(grad_clip=0.01, dropout=0.0)
    norms = []
    real = run.optimizers.step

    def step(rate):
        gradients = [p.grad.flatten() for p in run.model.parameters()]
        norms.append(torch.cat(gradients).norm().item())
        real(rate)

    monkeypatch.setattr(run.optimizers, "step", step)
    run.fit(nothing, after(3))
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)


def test_the_learning_rate_of_the_curve_is_that_of_the_schedule(make_run):
    run = make_run(lr=0.01, warmup_steps=2, decay_fraction=0.5, final_lr_fraction=0.1)
    used = []
    real = run.optimizers.step

    def step(rate):
        real(rate)
        used.append(run.optimizers.all[0].param_groups[0]["lr"])

    run.optimizers.step = step
    run.fit(nothing, never)
    for row in run.progress.curve:
        assert row["lr"] == used[row["step"] - 1]
    assert max(used) == 0.01 and used[0] < used[1] < used[2] and used[-1] < 0.002


def test_the_curve_covers_every_step_once_in_order(make_run):
    run = make_run(batch_size=1, accumulate=1, epochs=2)
    losses = []
    real = run._step
    run._step = lambda: losses.append(real()) or losses[-1]
    run.fit(nothing, never)
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
    run.fit(nothing, never)
    begin = 0
    for row in (row for row in run.progress.curve if "val_loss" in row):
        assert row["epoch_loss"] == pytest.approx(np.mean(losses[begin : row["step"]]))
        begin = row["step"]


def test_an_epoch_shorter_than_a_batch_ends_with_the_run(make_run):
    run = make_run(batch_size=400, accumulate=1, epochs=2)
    run.fit(nothing, never)
    assert (
        run.total_steps == 1
        and run.batches.epochs_done(run.progress.step) == 2
        and summary_of(run)["epochs"] == 2
    )


# Choosing -----------------------------------------------------------------------------------------


def scripted(run, monkeypatch, losses):
    """Replaces the validation losses by these, and records the weights of each epoch."""
    weights, script = [], iter(losses)

    def loss(max_tokens=None):
        weights.append({k: v.clone() for k, v in run.model.state_dict().items()})
        return next(script)

    monkeypatch.setattr(run.validator, "loss", loss)
    return weights


def test_the_best_weights_are_those_of_the_best_epoch(make_run, monkeypatch):
    run = make_run(epochs=5)
    weights = scripted(run, monkeypatch, [3.0, 2.0, 2.5, 2.0, 4.0])
    run.fit(nothing, never)
    assert (run.progress.best_epoch, run.progress.best_val_loss) == (2, 2.0)
    torch.testing.assert_close(run.best, weights[1], rtol=0, atol=0)
    assert not torch.equal(run.best["head.weight"], run.model.state_dict()["head.weight"])
    assert summary_of(run)["best_epoch"] == 2 and summary_of(run)["val_loss"] == 4.0


def test_patience_ends_the_run_and_says_so(make_run, monkeypatch):
    run = make_run(epochs=9, patience=2)
    scripted(run, monkeypatch, [3.0, 2.0, 2.5, 2.1, 1.0])
    run.fit(nothing, never)
    assert run.progress.finished and run.batches.epochs_done(run.progress.step) == 4
    assert "stopped: no better epoch since 2" in lines(run)[-1]
    assert run.progress.step < run.total_steps


def test_without_patience_the_run_never_stops_early(make_run, monkeypatch):
    run = make_run(epochs=5, patience=0)
    scripted(run, monkeypatch, [1.0, 2.0, 3.0, 4.0, 5.0])
    run.fit(nothing, never)
    assert run.batches.epochs_done(run.progress.step) == 5 and len(run.progress.log) == 5


def test_patience_counts_over_a_resume(make_run, monkeypatch):
    run = make_run(epochs=9, patience=2)
    scripted(run, monkeypatch, [2.0, 2.5])
    run.fit(nothing, lambda: len(run.progress.log) == 2)
    again = make_run(epochs=9, patience=2)
    again.restore(run.state_dict())
    scripted(again, monkeypatch, [2.2])
    again.fit(nothing, never)
    assert again.progress.finished and again.batches.epochs_done(again.progress.step) == 3


def test_validation_scores_the_split_with_what_precedes_it(make_run, data, machine):
    run = make_run()
    nats, tokens = score(run.model, data.val, data.train[-16:], machine)
    assert tokens == len(data.val) and run.validator.loss() == nats / tokens


# Refusing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_step(make_run, value):
    run = make_run()
    run.fit(nothing, after(3))
    with torch.no_grad():
        run.model.final_norm.weight[0] = value
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(NotFiniteError, match="stopped at step 4: the loss is nan"):
        run.fit(lambda: pytest.fail(f"saved {run.state_dict()}"), never)
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0, equal_nan=True)
    assert run.progress.step == 3
    with pytest.raises(NotFiniteError, match=r"norm of the weights is (nan|inf)"):
        run.state_dict()


def test_a_gradient_that_is_no_number_saves_the_last_good_step(make_run):
    run = make_run(ema_decay=0.9)
    run.fit(nothing, after(2))
    good = copy.deepcopy(run.state_dict())
    run.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    saved = []
    with pytest.raises(NotFiniteError, match="stopped at step 3: the norm of the gradient is nan"):
        run.fit(lambda: saved.append(run.state_dict()), never)
    parts = ("model", "optimizers", "ema", "best", "random")
    for part in parts:
        torch.testing.assert_close(saved[0][part], good[part], rtol=0, atol=0)
    assert saved[0]["progress"]["step"] == 2 and all(p.grad is None for p in run.model.parameters())


def test_a_validation_loss_that_is_no_number_is_never_the_best(make_run, monkeypatch):
    run = make_run()
    scripted(run, monkeypatch, [2.0, math.nan])
    with pytest.raises(NotFiniteError, match="the validation loss is nan"):
        run.fit(nothing, never)
    assert run.progress.best_val_loss == 2.0 and run.progress.best_epoch == 1


# Summary ------------------------------------------------------------------------------------------


def test_the_summary_depends_on_nothing_but_the_run(make_run):
    run = make_run()
    run.fit(nothing, never)
    summary = summary_of(run)
    assert summary["steps"] == 20 and summary["tokens_seen"] == 20 * 8 * 16
    assert run.num_parameters == run.model.parameter_count()
    bits = run.progress.best_val_loss / 3 / math.log(2)
    assert summary["best_val_bits_per_byte"] == pytest.approx(bits, abs=1e-5)


def test_two_progress_objects_share_no_list():
    first, second = Progress(), Progress()
    first.curve.append({})
    assert second.curve == [] and first.best_val_loss == math.inf


def test_bf16_learns_and_keeps_its_weights_in_float32(make_run, machine):
    run = make_run(epochs=6, dropout=0.0)
    run.machine = type(machine)(machine.device, "bf16", machine.threads)
    before = run.validator.loss()
    run.fit(nothing, never)
    assert run.progress.best_val_loss < before - 0.5
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
