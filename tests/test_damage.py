"""Damaged and forged files are refused in a sentence: a sample of `benchmarks/damage.py`."""

import random
import sys

import damage
import isolation
import pytest

from stages.lm.core.artifact import read_artifact
from stages.lm.core.errors import UserError

FILES = [
    "checkpoint.pt",
    "quantized.pt",
    "state.pt",
    "train.npy",
    "merges.npy",
    "meta.json",
    "tokenizer.tiktoken",
]


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """Small files of every kind by name: where each lies, and how it is read."""
    folder = tmp_path_factory.mktemp("damage")
    sys.addaudithook(isolation.watch)
    readers = damage.make_files(folder)
    return {(folder / file).name: (folder / file, read) for file, read in readers.items()}


def results(tried, case, count):
    """What became of a sample of the cases."""
    found = [case(number) for number in random.Random(0).sample(range(tried), count)]
    assert not [result for result in found if result.startswith("FAILED")]
    return set(found)


@pytest.mark.parametrize("file", FILES)
def test_any_damage_is_noticed_or_changes_nothing(readers, file):
    path, read = readers[file]
    assert path.stat().st_size < 20_000
    assert "refused" in results(*damage.damaged(path, read), 80)


def test_the_forger_writes_what_the_reader_reads(tmp_path):
    tensor = damage.tensor(b"K\x04\x85", b"K\x01\x85")
    program = damage.pickled(b"}" + damage.text("weight") + tensor + b"s")
    (tmp_path / "forged.pt").write_bytes(damage.archive(program, {"0": bytes(16)}))
    with pytest.raises(UserError, match="do not match their digest"):
        read_artifact(tmp_path / "forged.pt", {"checkpoint": 1})


@pytest.mark.parametrize("name", ["checkpoint.pt", "quantized.pt"])
def test_a_forged_archive_or_pickle_runs_nothing_and_is_refused(readers, name):
    path, read = readers[name]
    whole, expected = path.read_bytes(), read()
    for label, content in [*damage.forged_pickles(), *damage.forged_archives(whole)]:
        if len(content) < 1_000_000:
            path.write_bytes(content)
            assert damage.outcome(path, read, expected) in {"refused", "equal"}, label
    path.write_bytes(whole)


def test_forged_values_with_a_right_digest_are_refused_or_make_a_model(readers):
    tried, case = damage.forged_values(readers["checkpoint.pt"][0].parent)
    assert {"refused", "another model that writes text"} <= results(tried, case, 150)


def test_mutated_files_are_refused_or_make_a_model(readers):
    folder = readers["checkpoint.pt"][0].parent
    assert {"refused", "equal"} <= results(*damage.mutated(folder, 10**6, seed=2), 200)


@pytest.mark.parametrize("error", [None, UserError("refused, but too late")])
def test_what_a_forged_file_would_do_is_seen(tmp_path, error):
    def act():
        (tmp_path / "written").write_text("x")
        if error:
            raise error
        return "done"

    with pytest.raises(AssertionError, match="written"):
        isolation.watched(act)
