"""Where every file of the project lies."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
"""The folder that holds this code: the workspace, or DVC's copy of it for an experiment."""

PARAMS = ROOT / "params.yaml"

PROGRESS = ROOT / "models" / "resume" / "progress.json"
"""How far the training that runs now is; only the page reads it."""

DATA = ROOT / "data"
"""All that is the user's: nothing is written there, but what is downloaded to start from."""
INPUT = DATA / "input"
BASE = DATA / "base"
TOKENS = ROOT / "models" / "tokens"

CHECKPOINT = ROOT / "models" / "checkpoint.pt"
QUANTIZED = ROOT / "models" / "trained_model_quantized.pt"

CORPUS_METRICS = ROOT / "metrics" / "corpus.json"
TRAIN_METRICS = ROOT / "metrics" / "train.json"
QUANTIZE_METRICS = ROOT / "metrics" / "quantize.json"
EVALUATE_METRICS = ROOT / "metrics" / "evaluate.json"
LOSS_CURVE = ROOT / "metrics" / "loss.tsv"
TRAINING_LOG = ROOT / "metrics" / "training.log"
SAMPLES = ROOT / "metrics" / "samples.md"


def experiment_origin() -> Path | None:
    """The workspace that this code was copied from, or None in the workspace itself.

    `dvc exp run --temp` and `--queue` run in a copy under `.dvc/tmp/exps`, which holds only what
    git tracks and is deleted when the run fails; DVC names the workspace in `DVC_ROOT`.
    """
    origin = os.environ.get("DVC_ROOT")
    if not origin:
        return None
    copies = Path(origin) / ".dvc" / "tmp" / "exps"
    inside = copies.exists() and any(parent.samefile(copies) for parent in ROOT.parents)
    return Path(origin) if inside else None


def resume_folder() -> Path:
    """The folder of unfinished runs, which must outlive an experiment's copy."""
    origin = experiment_origin()
    return origin / ".dvc" / "tmp" / "resume" if origin else ROOT / "models" / "resume"


def shown(path: Path) -> str:
    """`path` as a user would type it from the project's root."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)
