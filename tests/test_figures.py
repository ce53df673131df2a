"""The page shows the figures in `metrics/` only beside the model they are of."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from test_app import PAGE, page, save_figures, save_models
from test_app import files as files  # the fixture that keeps the project's own files away

from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id, content_digest, read_artifact
from stages.lm.inference.loading import load_model
from stages.lm.model import checkpoint
from stages.lm.quantization import quantized_model

CURVE = "step\tepoch\ttrain_loss\tval_loss\tlr\n1\t1\t6.1\t6.2\t0.1\n"
FORMATS = {
    checkpoint.KIND: checkpoint.VERSION,
    quantized_model.KIND: quantized_model.VERSION,
}
KINDS = ("Quantized", "Checkpoint (float32)")
ALL = {"bits", "curve", "size", "parameters"}


@pytest.fixture
def figures() -> dict[Path, Any]:
    """Two models and all their figures."""
    save_models()
    save_figures({"held_out": {"bits_per_byte": 2.5}}, baselines={"gzip": 3.0})
    paths.LOSS_CURVE.write_text(CURVE)
    found = {}
    for path, more in {
        paths.TRAIN_METRICS: {"parameters": 5, "best_epoch": 1},
        paths.QUANTIZE_METRICS: {"file_bytes": 7, "checkpoint_bytes": 8},
        paths.EVALUATE_METRICS: {},
    }.items():
        found[path] = json.loads(path.read_text("utf-8")) | more
    return found


def write(figures: dict[Path, Any]) -> None:
    for path, values in figures.items():
        path.write_text(json.dumps(values), "utf-8")


def seen(at: AppTest, kind: str) -> set[str]:
    """Which figures the page shows of a model, in both tabs that show some."""
    at.radio(key="model").set_value(kind)
    at.selectbox(key="Right").select_index(KINDS.index(kind)).run()
    assert not at.exception and not at.warning
    column = at.table[0].value["Right"]
    shown = {
        "bits": any("never seen" in caption.value for caption in at.caption),
        "curve": any(header.value == "Loss while training" for header in at.subheader),
        "size": column["File"] != "—",
        "parameters": column["Parameters"] == "5",
    }
    assert shown["bits"] == (column["Bits per byte of held-out text"] == "2.5000")
    told = sum("is not of this model" in caption.value for caption in at.caption)
    assert told == 2 - shown["bits"] - shown["curve"]
    return {name for name, there in shown.items() if there}


def test_the_page_shows_the_figures_of_the_model_that_is_there(figures: dict[Path, Any]) -> None:
    write(figures)
    at = page()
    assert [seen(at, kind) for kind in KINDS] == [ALL, ALL]
    save_models(1)
    assert [seen(at, kind) for kind in KINDS] == [set(), set()]


@pytest.mark.parametrize("given", ["another", "missing", "of another type", "of the other model"])
@pytest.mark.parametrize(
    ("file", "part", "key", "hides"),
    [
        ("TRAIN_METRICS", None, "model", [{"trained"}, {"trained"}]),
        ("QUANTIZE_METRICS", None, "model", [{"quantized", "trained"}, set()]),
        ("QUANTIZE_METRICS", None, "checkpoint", [{"trained"}, {"quantized"}]),
        ("EVALUATE_METRICS", "float", "model", [set(), {"evaluated", "own"}]),
        ("EVALUATE_METRICS", "quantized", "model", [{"evaluated", "own"}, set()]),
    ],
)
def test_a_file_that_does_not_name_a_model_says_nothing_of_it(
    file: str, part: str | None, key: str, hides: list[set[str]], given: str,
    figures: dict[Path, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.syspath_prepend(str(Path(PAGE).parent))
    figures_of = importlib.import_module("figures").figures_of
    ids = [artifact_id(path) for path in (paths.QUANTIZED, paths.CHECKPOINT)]
    values = figures[getattr(paths, file)]
    place = values[part] if part else values
    wrong = {"another": "0" * 16, "of another type": [None]}
    place[key] = wrong.get(given, ids[1 - ids.index(place[key])])
    if given == "missing":
        del place[key]
    write(figures)
    for model, quantized, hidden in zip(ids, (True, False), hides, strict=True):
        found = asdict(figures_of(model, quantized))
        assert {name for name, value in found.items() if not value} == hidden
    nothing = asdict(figures_of(None, True)) | asdict(figures_of(None, False))
    assert not any(nothing.values())


def test_a_model_is_called_the_same_wherever_it_is_read() -> None:
    save_models()
    for path in (paths.CHECKPOINT, paths.QUANTIZED):
        _, content = read_artifact(path, FORMATS)
        assert artifact_id(path) == load_model(path).id == content_digest(content)[:16]
    assert artifact_id(paths.CHECKPOINT) != artifact_id(paths.QUANTIZED)


def test_what_is_no_artifact_has_no_name(tmp_path: Path) -> None:
    save_models()
    whole = paths.QUANTIZED.read_bytes()
    for data in (b"", b"text", whole[:100], whole[:-100], b"PK\x03\x04" + whole[:50]):
        (tmp_path / "file").write_bytes(data)
        assert artifact_id(tmp_path / "file") is None
    assert artifact_id(tmp_path) is artifact_id(tmp_path / "missing") is None
