"""A state that was written by other means is set aside with a sentence, whatever it holds."""

import copy
from functools import partial

import pytest
import torch

from stages.lm.core.artifact import write_artifact
from stages.lm.training.resume import FORGED, KIND, VERSION, ResumeStore, RunIdentity
from stages.lm.training.state_check import check_state
from stages.lm.training.trainer import Trainer

REMOVED = object()
ODD = [None, True, -1, 2**70, 1.5, float("nan"), "", [], [1], {}, {"a": 1}, torch.zeros(3), REMOVED]


@pytest.fixture(scope="module")
def make_run(initialised_model, make_train_settings, machine, data):
    def make(**fields):
        settings = make_train_settings(ema_decay=0.9, calibrate=True, **fields)
        return Trainer(initialised_model(dropout=0.0), data, settings, machine)

    return make


@pytest.fixture(scope="module")
def half_done(make_run):
    """A run that stopped in its second epoch."""
    run = make_run()
    stop_at = run.total_steps // 2 + 1
    run.fit(lambda: None, lambda: run.progress.step == stop_at)
    return run


def places(value, path=()):
    """The keys that lead to each part of nested dicts and lists, of long ones to the first few."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in list(items)[: 2 if isinstance(value, list) else 9]:
            yield (*path, key)
            yield from places(inner, (*path, key))


def changed(state, place, value):
    """A copy with another value at a place; what is beside the way there is shared."""
    state = copy.copy(state)
    inner = state
    for key in place[:-1]:
        inner[key] = copy.copy(inner[key])
        inner = inner[key]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return state


@pytest.mark.parametrize("fields", [{}, {"optimizer": "adamw"}, {"adapt": "lora"}])
@pytest.mark.parametrize("stop", [0, 1, None])
def test_an_honest_state_passes(make_run, fields, stop):
    run = make_run(**fields)
    if stop != 0:
        run.fit(lambda: None, lambda: run.progress.step == stop)
    check_state(copy.deepcopy(run.state_dict()), make_run(**fields))


def test_any_part_of_another_kind_is_refused_or_can_be_trained_from(half_done, make_run):
    state = half_done.state_dict()
    fresh = make_run()
    refused = harmless = 0
    for place in places(state):
        for value in ODD:
            forged = changed(state, place, value)
            try:
                check_state(forged, fresh)
            except FORGED:
                refused += 1
            else:
                harmless += 1
                if harmless % 8 == 0:  # each takes a while
                    trained_from(make_run(), forged)
    assert refused > 700 and harmless < refused / 4


def trained_from(run, state):
    run.restore(copy.deepcopy(state))
    run.fit(lambda: run.state_dict(), lambda: True)


FORGERIES = [
    (("model", "final_norm.weight"), torch.zeros(5)),
    (("model", "final_norm.weight"), torch.full((32,), float("nan"))),
    (("model", "final_norm.weight"), torch.ones(32, dtype=torch.float64)),
    (("best", "final_norm.weight"), REMOVED),
    (("best",), {}),
    (("ema", 0), torch.zeros(1)),
    (("ema",), [torch.zeros(1)]),
    (("optimizers", 0, 0, "momentum"), torch.zeros(2, 2)),
    (("optimizers", 0), {0: {}}),
    (("optimizers",), []),
    (("random", "cpu"), torch.zeros(7, dtype=torch.uint8)),
    (("random",), {}),
    (("machine",), {}),
    (("progress", "step"), 10**9),
    (("progress", "finished"), 1),
    (("progress", "elapsed"), 1e300),
    (("factors",), torch.zeros(3)),
    (("progress", "best_val_loss"), float("inf")),
    (("progress", "curve"), []),
    (("progress", "curve", 0, "lr"), "x"),
    (("progress", "log", 0), {}),
    (("progress", "epoch_losses"), [1.0]),
    (("progress", "point_losses"), [None]),
    (("progress", "more"), 1),
    (("more",), 1),
]


@pytest.mark.parametrize(("place", "value"), FORGERIES, ids=range(len(FORGERIES)))
def test_a_forged_state_with_a_right_digest_is_set_aside(half_done, tmp_path, place, value):
    store = ResumeStore(tmp_path, RunIdentity({"train.lr": 0.1}))
    write_artifact(store.path, KIND, VERSION, changed(half_done.state_dict(), place, value))
    content = store.path.read_bytes()
    found, message = store.load(partial(check_state, trainer=half_done))
    aside = store.path.with_name("state.damaged-1.pt")
    assert found is None and message.startswith("starting fresh") and str(aside) in message
    assert aside.read_bytes() == content and not store.path.exists()
