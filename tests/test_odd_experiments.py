"""An odd experiment is listed with what can be shown, and harms no other."""

import subprocess
import time
from pathlib import Path

import pytest
from test_app import files as files  # the fixture that keeps the project's own files away
from test_app import page, save_models
from test_compare import git
from test_compare import repository as repository

from app import experiments
from stages.lm.core import paths
from stages.lm.core.errors import UserError

BOMB = "a0: &a0 [1]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}, *a{i}]\n" for i in range(20))
DEEP = "[" * 10_000
PARAMS = {
    "anchors": BOMB, "recursion": "a: &a [*a]", "merge": "train: {<<: {lr: 1}}",
    "date": "train: {seed: 2024-01-01}", "no-date": "train: {seed: 2024-99-99}",
    "tag": "train: {seed: !!int abc}", "code": "a: !!python/object/apply:os.getcwd []",
    "brackets": DEEP, "braces": "{a: " * 10_000, "keys": "? " * 10_000, "doubled": "a: 1\na: 2",
    "number-key": "train: {1: 2, 2.5: 3, ~: 4}", "nul": "a: \0", "half": "train: {lr: 0.",
    "latin": b"prompt: \xfc\xff", "utf-16": "recipe: best".encode("utf-16"),
    "list": "- 1", "word": "a", "empty": "", "large": "x" * 2_000_000, "long": "x" * 200_000,
    "digits": f"a: {'9' * 5000}", "hex-digits": f"a: 0x{'f' * 5000}", "two": "a: 1\n---\nb: 2",
    "surrogate": 'a: "\\ud800"',
    "nan": "train: {lr: .nan, epochs: .inf}", "nested": "train: {lr: [[{a: [1]}]]}",
    "text": "evaluate: {prompt: '" + "x" * 40_000 + "'}", "1.1": "%YAML 1.1\n---\na: 010",
    "many": "".join(f"k{i}: 1\n" for i in range(3_000)),
}  # fmt: skip
UNDERSTOOD = {"1.1", "latin", "merge", "surrogate", "nan", "nested", "text", "many"}
METRICS = {
    "list": "[1]", "word": '"a"', "null": "null", "half": '{"parameters": 7', "nothing": "",
    "nan": '{"parameters": NaN, "best_epoch": Infinity}', "deep": DEEP, "bytes": b"\xff\xfe",
    "text": '{"parameters": "many", "best_epoch": {}}',
    "lists": '{"parameters": [1], "best_epoch": []}',
    "huge": f'{{"parameters": 1{"0" * 400}, "best_epoch": 1e999}}', "nul": "\0",
    "digits": f'{{"parameters": {"9" * 5000}}}', "bool": '{"parameters": true, "best_epoch": null}',
    "minus": '{"parameters": -5, "best_epoch": -0.5}', "large": '{"a": "' + "x" * 2_000_000 + '"}',
    "nested": '{"quantized": [], "float": 3, "held_out": {"bits_per_byte": {}}}',
    "none": '{"quantized": null, "file_bytes": null, "checkpoint_bytes": "a"}',
    "deeper": '{"quantized": {"held_out": {"bits_per_byte": "low"}}, "file_bytes": [1]}',
    "inner": '{"quantized": {"held_out": [2]}, "file_bytes": NaN}',
}  # fmt: skip
UNREADABLE = {"list", "word", "null", "half", "deep", "bytes", "nul", "digits", "large"}


def add_experiment(root: Path, name: str, contents: dict[Path, str | bytes]) -> None:
    """An experiment with these files, made without touching the workspace."""

    def made(content: str | bytes, *command: str) -> str:
        data = content.encode() if isinstance(content, str) else content
        done = subprocess.run(["git", *command], cwd=root, input=data, capture_output=True)
        return done.stdout.decode().strip()

    blobs = [
        (path.name, made(text, "hash-object", "-w", "--stdin")) for path, text in contents.items()
    ]
    tree = made("".join(f"100644 blob {blob}\t{file}\n" for file, blob in blobs), "mktree")
    outer = made(f"040000 tree {tree}\tproject\n", "mktree")
    git(
        root,
        "update-ref",
        f"refs/exps/ab/cdef/{name}",
        git(root, "commit-tree", "-m", "a", outer).strip(),
    )


def test_odd_settings_are_a_sentence_and_the_others_are_listed(repository: Path) -> None:
    for name, content in PARAMS.items():
        add_experiment(repository, name, {paths.PARAMS: content})
    add_experiment(repository, "no-params", {paths.TRAIN_METRICS: "{}"})
    git(repository, "update-ref", "refs/exps/ab/cdef/blob", "HEAD:project/params.yaml")
    began = time.process_time()
    found, notes = experiments.experiments()
    assert time.process_time() - began < 5, "a second, on a machine that is not busy"
    changed = {each.name: each.changed for each in found}
    assert changed.keys() == {*PARAMS, "no-params", "blob", "brave-newt"}
    assert changed["brave-newt"]["train.epochs"] == (4, 2)
    for name in changed.keys() - {"brave-newt"}:
        told = [note for note in notes if f"of experiment {name}" in note]
        assert len(told) == (name not in UNDERSTOOD), name
        assert bool(changed[name]) == (name in UNDERSTOOD), name
        assert all(len(note) < 2_000 and "\n" not in note for note in told)


def test_a_lost_object_hides_no_other_experiment(repository: Path) -> None:
    folder = repository.parent / ".git" / "refs" / "exps" / "ab" / "cdef"
    (folder / "gone").write_text("12" * 20 + "\n")
    (folder / "garbage").write_text("?")
    found, notes = experiments.experiments()
    assert [each.name for each in found] == ["brave-newt", "gone"]
    assert len(notes) == 1 and "of experiment gone is missing" in notes[0]


@pytest.mark.parametrize("content", [None, *PARAMS.values()], ids=["missing", *PARAMS])
def test_odd_settings_of_the_workspace_hide_no_experiment(
    repository: Path, content: str | bytes | None
) -> None:
    paths.PARAMS.unlink()
    if content is not None:
        paths.PARAMS.write_bytes(content.encode() if isinstance(content, str) else content)
    (found,), notes = experiments.experiments()
    assert found.name == "brave-newt"
    assert bool(found.changed) == (not notes)


@pytest.mark.parametrize("name", METRICS)
def test_odd_figures_are_dashes_beside_those_of_another(repository: Path, name: str) -> None:
    files = (paths.TRAIN_METRICS, paths.QUANTIZE_METRICS, paths.EVALUATE_METRICS)
    odd = dict.fromkeys(files, METRICS[name])
    add_experiment(repository, name, {paths.PARAMS: "recipe: odd"} | odd)
    found = {each.name: each.revision for each in experiments.experiments()[0]}
    for revision in (None, found[name]):
        for path in files:
            if revision is None:
                path.write_bytes(odd[path] if isinstance(odd[path], bytes) else odd[path].encode())
            shown = experiments.metrics(revision, path)
            assert bool(shown) != (name in UNREADABLE or name == "nothing")
            if name in UNREADABLE:
                with pytest.raises(UserError, match=path.name):
                    experiments.read_metrics(revision, path)
    assert experiments.metrics(found["brave-newt"], paths.TRAIN_METRICS)["parameters"] == 7_000


@pytest.mark.slow
def test_the_page_shows_all_of_them(repository: Path) -> None:
    save_models()
    for name, content in METRICS.items():
        odd = dict.fromkeys(
            (paths.TRAIN_METRICS, paths.QUANTIZE_METRICS, paths.EVALUATE_METRICS), content
        )
        add_experiment(repository, name, {paths.PARAMS: PARAMS.get(name, "recipe: odd")} | odd)
    paths.QUANTIZE_METRICS.write_text("{")
    at = page()
    options = at.selectbox(key="Right").options
    assert len(options) == 2 + 1 + len(METRICS) and all(len(option) < 300 for option in options)
    good = next(i for i, option in enumerate(options) if option.startswith("brave-newt"))
    at.selectbox(key="Left").select_index(good)
    for index in range(2, len(options), 3):  # all would take seconds
        at.selectbox(key="Right").select_index(index).run()
        assert not at.exception, options[index]
        assert at.table[0].value.loc["Parameters", "Left"] == "7,000"
        name = options[index].partition(":")[0]
        told = [text.value for text in at.text if text.value.startswith(name)]
        assert len(told) == (3 if name in UNREADABLE else 0), name
