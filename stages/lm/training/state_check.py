"""Whether a state file holds what `Trainer.state_dict` gives, whoever wrote it."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..core.pickle_reader import PLAIN
from .history import Progress, log_lines, summary
from .optim import Optimizers
from .trainer import Trainer


def check_state(state: dict[str, Any], trainer: Trainer) -> None:
    """Refuse a state that `trainer` cannot be restored to, trained from and published.

    Raises:
        ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError: it is
            one.
    """
    parts = {"progress", "model", "optimizers", "best", "ema", "factors", "random", "machine"}
    _require(set(state) == parts, "its parts are others")
    weights = trainer.model.state_dict()
    merged = {name: each for name, each in weights.items() if ".lora_" not in name}
    _check_weights(state["model"], weights)
    if state["best"] != {}:
        _check_weights(state["best"], merged)
    if state["ema"] != []:
        _check_weights(dict(enumerate(state["ema"])), dict(enumerate(trainer.trained)))
    _check_weights({"": state["factors"]}, {"": trainer.factors})
    _check_optimizers(state["optimizers"], trainer.optimizers)
    _require(type(state["random"]) is dict, "its random generators")
    torch.Generator().set_state(state["random"]["cpu"])
    _require(all(each.dtype == torch.uint8 for each in state["random"].values()), "random")
    machine = state["machine"]
    known = set(machine) == set(trainer.describe_machine())
    _require(known and all(type(each) in PLAIN for each in machine.values()), "its machine")
    _check_progress(Progress(**state["progress"]), trainer, bool(state["best"]))


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise ValueError(otherwise)


def _check_weights(found: Mapping[Any, Tensor], like: Mapping[Any, Tensor]) -> None:
    _require(set(found) == set(like), "its weights have other names")
    for name, weight in found.items():
        same = (weight.shape, weight.dtype) == (like[name].shape, like[name].dtype)
        _require(same and bool(weight.isfinite().all()), f"the weight {name} is no weight of it")


def _check_optimizers(states: list[dict[int, dict[str, Tensor]]], optimizers: Optimizers) -> None:
    for optimizer, state in zip(optimizers.all, states, strict=True):
        parameters = [each for group in optimizer.param_groups for each in group["params"]]
        _require(set(state) in (set(), set(range(len(parameters)))), "its optimizer is another")
        for number, values in state.items():
            shapes = {name: each.shape for name, each in values.items()}
            expected = dict.fromkeys(optimizers.state_names(optimizer), parameters[number].shape)
            if "step" in expected:
                expected["step"] = torch.Size(())
            floats = all(each.dtype == torch.float32 for each in values.values())
            _require(shapes == expected and floats, "its optimizer is another")


def _check_progress(progress: Progress, trainer: Trainer, has_best: bool) -> None:
    lists = (progress.point_losses, progress.epoch_losses, progress.curve, progress.log)
    _require(
        all(type(each) is list for each in lists)
        and all(type(row) is dict for row in progress.curve + progress.log),
        "its progress has other parts",
    )
    numbers = [progress.elapsed, progress.best_val_loss]
    numbers += [*progress.point_losses, *progress.epoch_losses]
    numbers += [value for row in progress.curve for value in row.values()]
    whole = [progress.step, progress.best_epoch]
    _require(
        all(type(number) in (int, float) for number in numbers)
        and all(type(number) is int for number in whole)
        and type(progress.finished) is bool
        and 0 <= progress.step <= trainer.total_steps
        and 0 <= progress.best_epoch <= trainer.settings.epochs
        and 0 <= progress.elapsed < 1e10,
        "its progress is impossible",
    )
    sums, counts = progress.epoch_losses[0::2], progress.epoch_losses[1::2]
    _require(len(sums) == len(counts) and all(0 < each < 1e9 for each in counts), "its losses")
    log_lines(progress, trainer.settings, trainer.validator)  # raises where they cannot be written
    if trainer.batches.epochs_done(progress.step):
        _require(any("epoch_loss" in row for row in progress.curve), "it lacks an epoch's losses")
        json.dumps(summary(progress, trainer.batches, trainer.validator), allow_nan=False)
        _require(has_best, "it lacks the best weights")
    else:
        _require(not progress.finished, "it is finished before its first epoch")
