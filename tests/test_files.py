"""A file is the old one or the new one, never a part of either."""

import hashlib
import os

import pytest

from stages.lm.core.errors import UserError
from stages.lm.core.files import (
    atomic_writer,
    read_json,
    sha256_file,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_block_replaces_the_file_and_leaves_no_other(tmp_path):
    path = tmp_path / "deep" / "file"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, UserError])
def test_a_block_that_raises_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_writer(path) as file:
        file.write(b"half of the")
        raise error("stop")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_writer(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    temporary_name(tmp_path / "file").write_bytes(b"a remainder of a killed process")
    temporary_name(tmp_path / "file").write_bytes(b"and of another one")
    others = [".file.tmp", ".file.12345678.tmp2", ".file.my notes.tmp", ".files.12345678.tmp"]
    for name in others:
        (tmp_path / name).write_bytes(b"the user's")
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"
    assert names(tmp_path) == sorted(["file", *others])
    assert all((tmp_path / name).read_bytes() == b"the user's" for name in others)


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path, target):
    (tmp_path / "there").write_bytes(b"in a cache")
    (tmp_path / "file").symlink_to(tmp_path / target)
    write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"in a cache"
    assert names(tmp_path) == ["file", "there"]


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        write_bytes(path, b"new")
    assert str(path) in str(caught.value) and "disk space" in str(caught.value)
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "taken").write_bytes(b"a file where a folder should be")
    with pytest.raises(UserError, match="could not be written"):
        write_bytes(tmp_path / "taken" / "file", b"new")


def test_contents_are_on_disk_before_the_name_is(tmp_path, monkeypatch):
    path = tmp_path / "file"
    seen = []
    real = os.fsync

    def record(descriptor):
        seen.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_bytes(path, b"new")
    assert seen[0] is False and (os.name == "nt" or seen[1:] == [True])


def test_text_is_utf8_with_plain_line_ends(tmp_path):
    write_text(tmp_path / "file", "ä\n\r\n")
    assert (tmp_path / "file").read_bytes() == "ä\n\r\n".encode()


def test_json_comes_back_and_refuses_nan(tmp_path):
    path = tmp_path / "file.json"
    value = {"loss": 1.25, "text": "ü", "list": [1, None, True]}
    write_json(path, value)
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert read_json(path) == value


@pytest.mark.parametrize("content", [b"{", b"", b"\xff"])
def test_damaged_json_is_a_sentence(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"file\.json is not readable as JSON"):
        read_json(path)


def test_missing_json_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"file\.json is missing"):
        read_json(tmp_path / "file.json")


def test_the_digest_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 1_000_000)
    expected = hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert sha256_file(tmp_path / "file") == expected
