"""Which figures in `metrics/` are those of a model: each file there names the model it is of."""

import math
from dataclasses import dataclass
from typing import Any

from experiments import metrics

from stages.lm.core import paths


@dataclass(frozen=True)
class Figures:
    """What the files in `metrics/` say of a model; empty where they say nothing of it."""

    trained: dict[str, Any]
    """`train.json`, of the checkpoint or of the one that was quantized."""
    quantized: dict[str, Any]
    """`quantize.json`, of the quantized model or of the checkpoint it was made from."""
    evaluated: dict[str, Any]
    """`evaluate.json`."""
    own: dict[str, Any]
    """The part of it that is of this model alone."""


def figures_of(model: str | None, quantized: bool, revision: str | None = None) -> Figures:
    """The figures of the model with this `Artifact.id`, as they are now or at a git revision."""
    part, key = ("quantized", "model") if quantized else ("float", "checkpoint")
    sizes = only_of(model, metrics(revision, paths.QUANTIZE_METRICS), key)
    trained = only_of(
        sizes.get("checkpoint") if quantized else model, metrics(revision, paths.TRAIN_METRICS)
    )
    evaluated = metrics(revision, paths.EVALUATE_METRICS)
    own = only_of(model, evaluated.get(part))
    return Figures(trained, sizes, evaluated if own else {}, own)


def only_of(model: str | None, found: Any, key: str = "model") -> dict[str, Any]:
    """`found`, if it names this model under `key`, or else nothing."""
    ours = model is not None and isinstance(found, dict) and found.get(key) == model
    return found if ours else {}


def number_in(found: Any, *keys: str) -> float | None:
    """The finite number under these keys, one within the other; None where there is none."""
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    try:
        return found if isinstance(found, int | float) and math.isfinite(found) else None
    except OverflowError:  # of an integer that no float holds
        return None
