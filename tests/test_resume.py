"""An unfinished run is found by the fingerprint of everything its result depends on."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import warm

from stages.lm import settings
from stages.lm.core import artifact
from stages.lm.core.errors import UserError
from stages.lm.core.files import sha256_file
from stages.lm.core.paths import ROOT
from stages.lm.training import resume
from stages.lm.training.resume import KEPT, ResumeStore, RunIdentity, code_digests, only_trainer

BASE = {"train.lr": 0.001, "train.seed": 1, "model.arch": "qwen3", "stages/train.py": "a" * 64}


@pytest.fixture
def make_store(tmp_path):
    return lambda **changes: ResumeStore(tmp_path / "resume", RunIdentity(BASE | changes))


# Identity -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"train.lr": 0.002},
        {"train.seed": 2},
        {"model.arch": "gpt2"},
        {"stages/train.py": "b" * 64},
        {"the token data": "c" * 64},
    ],
)
def test_any_ingredient_changes_the_fingerprint(change):
    assert RunIdentity(BASE | change).fingerprint != RunIdentity(BASE).fingerprint


@pytest.mark.parametrize("name", BASE)
def test_a_lost_ingredient_changes_the_fingerprint(name):
    rest = {key: value for key, value in BASE.items() if key != name}
    assert RunIdentity(rest).fingerprint != RunIdentity(BASE).fingerprint


def test_the_order_of_the_ingredients_does_not_change_the_fingerprint():
    identity = RunIdentity(dict(reversed(BASE.items())))
    assert identity.fingerprint == RunIdentity(BASE).fingerprint


def test_the_fingerprint_is_16_hexadecimal_digits():
    fingerprint = RunIdentity(BASE).fingerprint
    assert len(fingerprint) == 16 and int(fingerprint, 16) >= 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train.lr": 0.002}, "train.lr changed from 0.001 to 0.002"),
        ({"stages/train.py": "b" * 64}, "stages/train.py changed"),
        (
            {"train.lr": 1, "model.arch": "gpt2"},
            "model.arch changed from 'qwen3' to 'gpt2', train.lr changed from 0.001 to 1",
        ),
        ({"the token data": "c" * 64}, "the token data changed"),
        ({}, ""),
    ],
)
def test_the_difference_names_what_changed(change, words):
    assert RunIdentity(BASE | change).difference(BASE) == words


def test_the_code_digests_are_those_of_the_imported_files():
    digests = code_digests()
    assert digests["stages/lm/training/resume.py"] == sha256_file(Path(resume.__file__))
    assert digests["stages/lm/core/artifact.py"] == sha256_file(Path(artifact.__file__))
    assert str(Path(settings.__file__).relative_to(ROOT)) not in digests


# Store --------------------------------------------------------------------------------------------


def test_without_any_state_the_run_starts_fresh(make_store):
    assert make_store().load() == (None, "starting fresh: there is no unfinished run")


def test_a_saved_state_comes_back_to_the_same_run(make_store):
    make_store().save({"step": 5})
    assert make_store().load() == ({"step": 5}, "continuing")


def test_a_later_state_replaces_an_earlier_one(make_store):
    make_store().save({"step": 5})
    make_store().save({"step": 6})
    assert make_store().load()[0] == {"step": 6}


def test_another_run_starts_fresh_and_says_what_changed(make_store):
    make_store().save({"step": 5})
    found, message = make_store(**{"train.lr": 0.5}).load()
    assert found is None
    assert "train.lr changed from 0.001 to 0.5 (its state is kept)" in message
    assert make_store().load()[0] == {"step": 5}


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_an_unreadable_record_of_another_run_does_not_stop_this_one(make_store, content):
    make_store().save({"step": 5})
    (make_store().path.parent / "run.json").write_bytes(content)
    found, message = make_store(**{"train.lr": 0.5}).load()
    assert found is None and message.startswith("starting fresh") and "unreadable" in message


def test_the_record_beside_a_state_holds_its_ingredients(make_store):
    make_store().save({"step": 5})
    assert json.loads((make_store().path.parent / "run.json").read_text("utf-8")) == BASE


def test_a_damaged_state_is_set_aside_and_never_overwritten(make_store):
    for number in (1, 2):
        store = make_store()
        store.save({"step": 5})
        damage = store.path.read_bytes()[:-100] + bytes([number])
        store.path.write_bytes(damage)
        found, message = store.load()
        aside = store.path.with_name(f"state.damaged-{number}.pt")
        assert found is None and "damaged" in message and str(aside) in message
        assert aside.read_bytes() == damage and not store.path.exists()


def test_a_state_that_cannot_be_read_now_is_left_as_it_is(make_store, monkeypatch):
    store = make_store()
    store.save({"step": 5})

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(artifact, "read_tensors_file", broken)
        with pytest.raises(UserError, match="Input/output error"):
            store.load()
    assert store.load() == ({"step": 5}, "continuing")


def test_folders_of_runs_that_never_saved_are_removed_at_the_next_save(make_store):
    killed, starting = (make_store(**{"train.seed": seed}).path.parent for seed in (7, 8))
    killed.mkdir(parents=True)
    (killed / ".state.pt.tmp").write_bytes(b"half of a state")
    foreign = killed.with_name("of the user")
    foreign.mkdir()
    with only_trainer(starting / "lock"):
        make_store().save({"step": 5})
        assert starting.exists() and foreign.exists() and not killed.exists()


def test_only_the_newest_others_are_kept(make_store):
    stores = [make_store(**{"train.seed": seed}) for seed in range(KEPT + 3)]
    for age, store in enumerate(stores):
        store.save({"step": age})
        os.utime(store.path, (1_000_000 + age, 1_000_000 + age))
    last = make_store(**{"train.seed": 99})
    last.save({"step": 99})
    assert [store.path.exists() for store in stores] == [False] * 3 + [True] * KEPT
    assert last.path.exists()


def test_a_run_that_trains_elsewhere_keeps_its_state(make_store):
    busy = make_store(**{"train.seed": 7})
    with only_trainer(busy.path.parent / "lock"):
        busy.save({"step": 0})
        os.utime(busy.path, (1, 1))
        for seed in range(20, 25 + KEPT):
            make_store(**{"train.seed": seed}).save({"step": 1})
        assert busy.path.exists()


# Lock ---------------------------------------------------------------------------------------------


def test_a_second_trainer_is_refused_with_the_pid_of_the_first(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import sys; from pathlib import Path; from stages.lm.training.resume import only_trainer\n"
        "with only_trainer(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, lock],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert first.stdout.readline() == "held\n"
        refusal = rf"pid {first.pid}\).*`kill {first.pid}`"
        with pytest.raises(UserError, match=refusal), only_trainer(lock):
            raise RuntimeError("two trainers at once")
    finally:
        first.communicate("", timeout=30)
    assert first.returncode == 0
    with only_trainer(lock):
        assert (tmp_path / "lock.pid").read_text() == f"{os.getpid()}\n"


def test_a_killed_trainer_releases_its_lock(tmp_path):
    lock = tmp_path / "lock"
    code = (
        "import os, sys; from pathlib import Path\n"
        "from stages.lm.training.resume import only_trainer\n"
        "with only_trainer(Path(sys.argv[1])): os._exit(9)"
    )
    assert warm.python(ROOT, "-c", code, str(lock)).returncode == 9
    assert (tmp_path / "lock.pid").exists()
    with only_trainer(lock):
        assert (tmp_path / "lock.pid").read_text() == f"{os.getpid()}\n"


def test_a_lock_that_cannot_be_created_is_a_user_error(tmp_path):
    (tmp_path / "file").write_bytes(b"a file where a folder should be")
    with pytest.raises(UserError, match="could not be written"), only_trainer(tmp_path / "file/x"):
        raise RuntimeError("without a lock")


def test_an_error_in_the_block_releases_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="boom"), only_trainer(tmp_path / "lock"):
            raise ValueError("boom")
    assert not (tmp_path / "lock.pid").exists()
