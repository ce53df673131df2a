"""The stage `corpus` records which text it is and what `auto` stands for with it."""

import hashlib
import json
import shutil

import pytest

from stages import corpus
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.settings.recipes import automatic


@pytest.fixture
def record(tmp_path, monkeypatch):
    """Runs the stage on a text, with the shipped settings; returns what it recorded."""
    monkeypatch.setattr(paths, "INPUT", tmp_path / "input.txt")
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "input.jsonl")
    monkeypatch.setattr(paths, "BASE", tmp_path / "base")
    monkeypatch.setattr(paths, "CORPUS_METRICS", tmp_path / "corpus.json")

    def run(text):
        paths.INPUT.write_bytes(text)
        corpus.main()
        return json.loads(paths.CORPUS_METRICS.read_text("utf-8"))

    return run


def test_the_record_names_the_text(record):
    text = b"a few words\n" * 100
    found = record(text)
    assert found["source"] == "own" and found["bytes"] == 1200
    assert found["sha256"] == hashlib.sha256(text).hexdigest()


def test_the_sample_is_recognised_without_making_it(record, sample, monkeypatch):
    monkeypatch.setattr(corpus, "sample_text", None)
    assert record(sample)["source"] == "sample"
    assert record(sample + b"mine\n")["source"] == "own"


@pytest.mark.parametrize("name", ["INPUT", "RECORDS"])
def test_a_folder_in_place_of_the_data_is_refused(record, name):
    getattr(paths, name).mkdir()
    with pytest.raises(UserError, match=r"input\.\w+ is not a file; put one plain file there"):
        corpus.main()


def test_the_record_has_one_value_for_each_automatic_setting(record):
    found = record(b"a few words\n" * 100)
    expected = automatic(1200)
    assert found["recipe"] == expected.recipe
    assert found["auto"] == expected.chosen() and sorted(found["auto"]) == sorted(expected.used)
    assert found["auto"]


def test_another_size_of_text_has_other_values(record):
    short, long = (record(b"a few words\n" * count)["auto"] for count in (100, 500_000))
    assert short.keys() == long.keys() and short != long
    assert long == automatic(6_000_000).chosen()


# Links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["input.txt", "input.jsonl", "base", "."])
def test_a_link_to_nothing_is_not_replaced(record, tmp_path, monkeypatch, name):
    data = tmp_path / "data"
    monkeypatch.setattr(paths, "INPUT", data / "input.txt")
    monkeypatch.setattr(paths, "RECORDS", data / "input.jsonl")
    monkeypatch.setattr(paths, "BASE", data / "base")
    if name != ".":
        data.mkdir()
    (data / name).symlink_to(tmp_path / "unmounted" / "mine")
    with pytest.raises(UserError, match=r"is a link to .*unmounted.* Mount its drive"):
        corpus.main()
    assert (data / name).readlink() == tmp_path / "unmounted" / "mine"
    assert not (tmp_path / "unmounted").exists() and not paths.CORPUS_METRICS.exists()


def test_a_text_that_a_link_leads_to_is_the_users(record, tmp_path, sample):
    (tmp_path / "mine").write_bytes(sample)
    paths.INPUT.symlink_to(tmp_path / "mine")
    corpus.main()
    paths.RECORDS.write_text('{"prompt": "a", "completion": "b"}\n')
    with pytest.raises(UserError, match=r"holds records and .* holds a text"):
        corpus.main()
    assert paths.INPUT.is_symlink() and (tmp_path / "mine").read_bytes() == sample


# Experiments --------------------------------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """The folder `data` of a workspace, and that of DVC's copy of it."""
    monkeypatch.setattr(paths, "ROOT", tmp_path / "copy")
    monkeypatch.setattr(paths, "experiment_origin", lambda: tmp_path / "origin")
    (tmp_path / "origin" / "data").mkdir(parents=True)
    return tmp_path / "origin" / "data", tmp_path / "copy" / "data"


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_linked_files_and_folders_are_brought_into_an_experiment(experiment, tmp_path):
    origin, copy = experiment
    drive = tmp_path / "drive"
    (drive / "base" / "model" / "deep").mkdir(parents=True)
    (drive / "other").mkdir()
    for name in ("text", "base/own.pt", "base/model/deep/config.json", "other/x.tiktoken"):
        (drive / name).write_text(name)
    (origin / "input.txt").symlink_to(drive / "text")
    (origin / "base").symlink_to(drive / "base")
    (drive / "base" / "linked").symlink_to(drive / "other")
    (drive / "base" / "file.pt").symlink_to(drive / "text")
    (drive / "base" / "model" / "circle").symlink_to(drive / "base")
    (drive / "base" / "nowhere").symlink_to(drive / "gone")
    corpus.bring_text_into_experiment()
    assert contents(copy) == {
        "input.txt": b"text",
        "base/own.pt": b"base/own.pt",
        "base/file.pt": b"text",
        "base/model/deep/config.json": b"base/model/deep/config.json",
        "base/linked/x.tiktoken": b"other/x.tiktoken",
    }


@pytest.mark.parametrize("name", ["input.txt", "input.jsonl", "base"])
def test_an_experiment_does_not_begin_without_what_a_link_stands_for(experiment, tmp_path, name):
    (experiment[0] / name).symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="unmounted"):
        corpus.bring_text_into_experiment()


@pytest.mark.parametrize("change", ["longer", "rewritten", "replaced", "shorter", "gone"])
def test_a_text_that_changes_while_it_is_copied_is_refused(experiment, monkeypatch, change):
    origin, copy = experiment
    text, real = origin / "input.txt", shutil.copyfileobj
    text.write_text("a text\n")
    text.with_name("new").write_text("a file\n")

    def slow(source, target):
        real(source, target)
        if change == "replaced":
            text.with_name("new").replace(text)
        elif change == "gone":
            text.unlink()
        else:
            text.write_text(
                {"longer": "a text\nmore\n", "rewritten": "a TEXT\n", "shorter": ""}[change]
            )

    monkeypatch.setattr(shutil, "copyfileobj", slow)
    with pytest.raises(UserError, match=r"input\.txt (was written|is missing)"):
        corpus.bring_text_into_experiment()
    assert not contents(copy)
