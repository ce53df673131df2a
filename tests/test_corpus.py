"""The stage `corpus` records which text it is and what `auto` stands for with it."""

import hashlib
import json

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
