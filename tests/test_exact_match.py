"""An answer is right or wrong; what a model has learned of a task is told beside the likeliest."""

import json
import random
from types import SimpleNamespace

import pytest
from test_end_to_end import new_project, python, set_params

from stages.lm.evaluation import exact_match as module
from stages.lm.evaluation.exact_match import Question, answers_exactly, exact_match, majority
from stages.lm.inference.generation import GeneratedToken

END = 5
LOADED = SimpleNamespace(tokenizer=SimpleNamespace(control={END: "<|end|>"}))


def question(completion):
    return Question([1, 2], "ok?", completion)


@pytest.fixture
def written(monkeypatch):
    """A function that makes every model answer in these pieces."""

    def answer(*pieces):
        told = []

        def steps(loaded, prompt, count, *_):
            for piece in pieces[:count]:
                told.append(piece)
                yield [GeneratedToken(0 if piece else END, piece, piece.decode())]

        monkeypatch.setattr(module, "generate_steps", steps)
        return told

    return answer


@pytest.mark.parametrize(
    ("pieces", "right"),
    [
        ((b"y", b"es", b""), True),
        ((b"yes", b""), True),
        ((b"yes", b"!", b""), False),
        ((b"ye", b""), False),
        ((b"no", b""), False),
        ((b"yes",), False),
        ((), False),
    ],
)
def test_an_answer_is_right_if_it_is_the_completion_and_ends(written, pieces, right):
    written(*pieces)
    assert answers_exactly(LOADED, question(b"yes")) is right


def test_a_wrong_answer_is_not_waited_for(written):
    told = written(*[b"n"] * 100)
    assert exact_match(LOADED, [question(b"yes"), question(b"no")]) == 0
    assert len(told) == 1 + 2


def test_the_share_of_right_answers(written):
    written(b"yes", b"")
    assert exact_match(LOADED, [question(b"yes"), question(b"no"), question(b"yes")]) == 0.6667


def test_the_majority_is_of_the_training_records():
    training = [[b"a", b"b"][n % 3 == 0] for n in range(30)]
    assert majority(training, [b"a", b"b", b"b", b"b"]) == 0.25
    assert majority(training[::-1], [b"c"]) == 0


@pytest.mark.parametrize("labels", [60, 101])
def test_completions_that_seldom_repeat_are_no_labels(labels):
    training = [str(n % labels).encode() for n in range(100 if labels == 60 else 1000)]
    assert majority(training, training) is None


@pytest.mark.slow
def test_the_pipeline_teaches_a_task(tmp_path):
    """Of which kind the second word is; those around it say nothing."""
    draw = random.Random(1)
    kinds = {"animal": "cat dog rat hen", "tree": "oak ash elm fir", "colour": "red blue pink"}
    lines = []
    for number in range(600):
        kind = draw.choice(["animal", "tree", "tree", "colour"])
        name = "".join(draw.choices("abcdefgh", k=3))
        prompt = f"{name} {draw.choice(kinds[kind].split())} {number}"
        lines.append(json.dumps({"prompt": prompt, "completion": kind}))
    folder = new_project(tmp_path / "project")
    (folder / "data" / "input.txt").unlink()
    (folder / "data" / "input.jsonl").write_text("\n".join(lines), "utf-8")
    changes = {
        "tokenize": {"val_fraction": 0.1, "test_fraction": 0.1},
        "model": {"context": 32},
        "train": {"epochs": 8, "batch_size": 8, "accumulate": 1, "split_tokens": 0.0},
        "quantize": {"scheme": "int8"},
        "evaluate": {"samples": 2},
    }
    set_params(folder, changes)
    names = ("corpus", "tokenize_text", "train", "quantize", "evaluate")
    told = "".join(python(folder, "-m", f"stages.{name}").stdout for name in names)
    assert "(train 480, val 60, test 60)" in told
    assert "480 for training in " in told and "exact answers of 120 held-out records" in told
    figures = json.loads((folder / "metrics" / "evaluate.json").read_text("utf-8"))
    assert figures["majority"] < 0.7 and figures["asked_records"] == 120
    assert figures["float"]["exact_match"] > 0.9 and figures["quantized"]["exact_match"] > 0.9
    assert 0 <= figures["float"]["held_out"]["bits_per_byte"] < 0.3
    assert not figures.keys() & {"baselines", "memorisation"}
    shown = (folder / "metrics" / "samples.md").read_text("utf-8")
    assert shown.count("Wanted:") == shown.count("Written:") == 2
    answer = python(folder, "-m", "app.generate", "bag elm 7", "--temperature", "0")
    assert answer.stdout == "tree\n"
