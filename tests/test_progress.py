"""What the page tells of a run that goes on."""

import json
import os
import time
from pathlib import Path

import pytest
from test_app import page

from app import progress
from stages import train
from stages.lm.core import paths

RUN = {
    "step": 30, "steps": 120, "epoch": 1, "epochs": 3, "loss": 2.5, "tokens_per_second": 9000.0,
    "seconds_left": 75.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHECKPOINT", "QUANTIZED", "EVALUATE_METRICS", "LOSS_CURVE", "TOKENS", "PROGRESS"):
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)


def test_a_run_that_goes_on_is_shown_where_there_is_no_model_yet() -> None:
    paths.PROGRESS.write_text(json.dumps(RUN), "utf-8")
    (bar,) = page().get("progress")
    assert bar.proto.value == 25
    assert bar.proto.text == (
        "Training: epoch 1 of 3, step 30 of 120, loss 2.500, 9,000 tokens/s, 0:01:15 left"
    )


ODD = [{"steps": 0}, {"epoch": "*a*"}, {"epochs": "$x$"}, {"seconds_left": ":smile:"}]


@pytest.mark.parametrize("content", ["{", "[]", "{}", *(json.dumps(RUN | odd) for odd in ODD)])
def test_a_damaged_or_foreign_file_shows_nothing(content: str) -> None:
    paths.PROGRESS.write_text(content, "utf-8")
    assert progress.training() is None
    assert not page().get("progress")


@pytest.mark.parametrize("clock", [1, -1])  # it may have been set back since
def test_a_killed_run_is_not_shown_for_long(clock: int) -> None:
    paths.PROGRESS.write_text(json.dumps(RUN), "utf-8")
    then = time.time() - clock * (progress.STALE_SECONDS + 1)
    os.utime(paths.PROGRESS, (then, then))
    assert progress.training() is None


def test_the_trainer_tells_what_the_page_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Progress:
        step = 3

    class Batches:
        total_steps, tokens_per_step = 12, 100

        def epochs_done(self, step: int) -> int:
            return 1

    class Settings:
        epochs = 4

    class Run:
        progress, batches, settings = Progress, Batches(), Settings

    report = train.Reporter(Run())  # type: ignore[arg-type]
    report(1.25, 100.0)
    share, words = progress.training() or (0.0, "")
    assert share == 0.25
    assert words == ("Training: epoch 2 of 4, step 3 of 12, loss 1.250, 100 tokens/s, 0:00:09 left")
    paths.PROGRESS.unlink()
    report(1.25, 100.0)
    assert not paths.PROGRESS.exists(), "written twice within a second"
