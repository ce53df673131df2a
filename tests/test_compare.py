"""Two models side by side: what each writes, and what is told of both."""

import json
import subprocess
from pathlib import Path

import pytest
import streamlit as st
from test_app import files as files  # the fixture that keeps the project's own files away
from test_app import page, save_figures, save_models

from app import experiments
from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id
from stages.lm.inference.generation import SamplingSettings, generate_text
from stages.lm.inference.loading import load_model


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with one experiment, which has other settings and figures, in a subfolder."""
    st.cache_data.clear()
    root = tmp_path / "git" / "project"
    root.mkdir(parents=True)
    monkeypatch.setattr(paths, "ROOT", root)
    metrics = ("TRAIN_METRICS", "QUANTIZE_METRICS", "EVALUATE_METRICS")
    for name in ("PARAMS", *metrics, "QUANTIZED", "CHECKPOINT"):
        monkeypatch.setattr(paths, name, root / getattr(paths, name).name)
    git(root.parent, "init", "-q")
    paths.PARAMS.write_text("recipe: best\ntrain: {epochs: 2, lr: 0.1}\n")
    paths.TRAIN_METRICS.write_text(json.dumps({"model": "c", "parameters": 7_000}))
    paths.QUANTIZE_METRICS.write_text(json.dumps({"model": "q", "checkpoint": "c"}))
    git(root, "add", "-A")
    git(root, "commit", "-qm", "an experiment")
    for ref in ("refs/exps/ab/cdef/brave-newt", "refs/exps/exec/EXEC_HEAD"):
        git(root, "update-ref", ref, "HEAD")
    paths.PARAMS.write_text("recipe: quick\ntrain: {epochs: 4, lr: 0.1, seed: 5}\n")
    save_models()
    save_figures({})
    ours = {"model": artifact_id(paths.CHECKPOINT), "parameters": 3_000}
    paths.TRAIN_METRICS.write_text(json.dumps(ours))
    return root


def test_experiments_are_those_of_dvc_with_what_they_change(repository: Path) -> None:
    (found,), notes = experiments.experiments()
    assert not notes
    assert found.name == "brave-newt"
    assert found.revision == git(repository, "rev-parse", "HEAD").strip()
    changed = {"recipe": ("quick", "best"), "train.epochs": (4, 2), "train.seed": (5, None)}
    assert found.changed == changed
    assert experiments.metrics(found.revision, paths.TRAIN_METRICS)["parameters"] == 7_000
    assert experiments.metrics(None, paths.TRAIN_METRICS)["parameters"] == 3_000
    assert experiments.metrics(found.revision, repository / "missing.json") == {}


def test_without_git_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert experiments.experiments() == ([], [])


def test_both_models_write_what_they_write_alone() -> None:
    save_models()
    at = page()
    at.number_input(key="length").set_value(30)
    at.text_area(key="both").set_value("the cat")
    at.button(key="compare").click().run()
    assert not at.exception
    files = (paths.QUANTIZED, paths.CHECKPOINT)
    sampling = SamplingSettings()
    alone = [generate_text(load_model(file), "the cat", 30, sampling, 1337) for file in files]
    assert [block.value for block in at.code] == ["the cat" + text for text in alone]
    names = [caption.value for caption in at.caption if "tokens/s" in caption.value]
    assert [name.split(" · ")[0] for name in names] == ["` Quantized `", "` Checkpoint (float32) `"]


def test_an_experiments_figures_stand_beside_the_workspaces(repository: Path) -> None:
    at = page()
    at.selectbox(key="Right").select_index(2).run()
    assert not at.exception
    figures = at.table[0].value
    assert list(figures.loc["Parameters"]) == ["3,000", "7,000"]
    options = at.selectbox(key="Right").options
    assert options[2] == "brave-newt: recipe best, train.epochs 2, train.seed default"


def test_an_experiment_whose_model_is_gone_is_a_sentence(repository: Path) -> None:
    at = page()
    at.selectbox(key="Right").select_index(2)
    at.button(key="compare").click().run()
    assert not at.exception
    assert "brave-newt" in at.text[0].value and "dvc exp apply" in at.text[0].value
