"""The stage `corpus` records which text it is and what `auto` stands for with it."""

import hashlib
import json
import os
import shutil

import pytest

from stages import corpus
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.settings.recipes import automatic


@pytest.fixture
def record(workspace):
    """Runs the stage on a text, with the shipped settings; returns what it recorded."""

    def run(text):
        (paths.DATA / "input.txt").write_bytes(text)
        corpus.main()
        return json.loads(paths.CORPUS_METRICS.read_text("utf-8"))

    return run


def test_the_record_names_the_text(record):
    text = b"a few words\n" * 100
    found = record(text)
    assert found["source"] == "text" and found["bytes"] == 1200
    assert found["sha256"] == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("name", ["input.txt", "input/a.txt"])
def test_what_is_not_utf8_in_a_single_text_is_told(workspace, capsys, name):
    text = "Die Bären mögen süßen Honig, und zwar täglich.\n".encode("latin-1") * 20
    (paths.DATA / name).write_bytes(text)
    corpus.main()
    assert "% of the text is not UTF-8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.docx", b"PK\3\4", "damaged, or of a kind that cannot be read"),
        ("a.html", b"<p></p>" * 50, "nothing but white space"),
    ],
)
def test_a_single_file_without_text_is_refused_with_the_reason(workspace, name, data, reason):
    (paths.INPUT / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name} holds .*{reason}"):
        corpus.main()


def test_an_empty_folder_means_the_sample_which_is_not_written_there(workspace, sample):
    (paths.INPUT / ".DS_Store").write_bytes(b"hidden")
    corpus.main()
    found = json.loads(paths.CORPUS_METRICS.read_text("utf-8"))
    assert found["source"] == "sample" and found["bytes"] == len(sample)
    assert found["sha256"] == hashlib.sha256(sample).hexdigest()
    assert len(list(paths.INPUT.iterdir())) == 1 and not list(paths.DATA.glob("input.*"))


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


TEXT = b"a few words\n" * 100


@pytest.mark.parametrize("places", [("input.txt", "input.csv"), ("input.txt", "input/a.txt")])
def test_two_places_for_what_is_learned_are_refused(workspace, places):
    for name in places:
        (paths.DATA / name).write_bytes(b"text\n" + TEXT)
    with pytest.raises(UserError, match="both hold something to learn from"):
        corpus.main()


def test_what_is_not_used_is_named(workspace, capsys):
    (paths.DATA / "notes.txt").write_bytes(TEXT)
    (paths.DATA / "input.txt.dvc").write_bytes(TEXT)
    (paths.INPUT / "a.txt").write_bytes(TEXT)
    (paths.INPUT / "picture.png").write_bytes(b"\x89PNG" + TEXT)
    corpus.main()
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[1].strip() for line in told if line.startswith("not used")] == [
        "picture.png",
        str(paths.DATA / "notes.txt"),
    ]


# Links --------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("name", ["input.txt", "input.jsonl"])
def test_a_link_to_nothing_is_not_replaced(workspace, name):
    link = paths.DATA / name
    link.symlink_to(workspace / "unmounted" / "mine")
    with pytest.raises(UserError, match=r"is a link to .*unmounted.* Mount its drive"):
        corpus.main()
    assert link.is_symlink() and not paths.CORPUS_METRICS.exists()


def test_a_text_that_a_link_leads_to_is_the_users(workspace):
    (workspace / "mine").write_bytes(TEXT)
    (paths.DATA / "input.txt").symlink_to(workspace / "mine")
    corpus.main()
    assert json.loads(paths.CORPUS_METRICS.read_text("utf-8"))["bytes"] == len(TEXT)


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
    corpus.bring_data_into_experiment()
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
        corpus.bring_data_into_experiment()


@pytest.mark.parametrize("tracked", ["input/a.txt", "input"])
def test_what_dvc_tracks_is_left_as_it_was_queued(experiment, tracked):
    origin, copy = experiment
    for folder, text in ((origin, "edited"), (copy, "queued")):
        (folder / "input").mkdir(parents=True)
        (folder / "input" / "a.txt").write_text(text)
        (folder / f"{tracked}.dvc").write_text(text)
    for name in ("input/b.txt", "other.txt"):
        (origin / name).write_text("not tracked")
    corpus.bring_data_into_experiment()
    found = contents(copy)
    assert found["input/a.txt"] == found[f"{tracked}.dvc"] == b"queued"
    assert found["other.txt"] == b"not tracked"
    assert ("input/b.txt" in found) == (tracked != "input")


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
        corpus.bring_data_into_experiment()
    assert not contents(copy)
