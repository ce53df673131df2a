"""A file says what it is, is the same bytes for the same content, and notices any damage."""

import os
import pickle
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from stages.lm.core.artifact import content_digest, opened_artifact, read_artifact, write_artifact
from stages.lm.core.errors import UserError

KINDS = {"thing": 1}


def content():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=generator)
    return {
        "text": "schön",
        "numbers": [1, 2.5, True, None, float("inf"), -0.0],
        "nested": {"deep": {"1": (1, 2)}, 5: "text", "again": "schön"},
        "tensors": {
            "float": weight,
            "view": weight[:, 2:4].T,
            "half": weight.half(),
            "brain": weight.bfloat16(),
            "codes": torch.arange(-5, 5, dtype=torch.int8),
            "scalar": torch.tensor(3),
            "empty": torch.empty(0, 4),
        },
    }


def plain(value):
    """Tensors as lists and tuples as lists, for comparison."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return str(value.dtype), value.tolist(), tuple(value.shape)
    return type(value), value


@pytest.fixture
def written(tmp_path):
    write_artifact(tmp_path / "thing.pt", "thing", 1, content())
    return tmp_path / "thing.pt"


def refusal(path, kinds=KINDS):
    with pytest.raises(UserError) as caught:
        read_artifact(path, kinds)
    message = str(caught.value)
    assert str(path) in message and "`dvc repro`" in message
    return message


@pytest.mark.parametrize("damaged", [False, True])
def test_damage_is_told_rather_than_what_it_led_to(written, damaged):
    whole = written.read_bytes()
    if damaged:
        offset = whole.index(content()["tensors"]["float"].numpy().tobytes())
        written.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
    expected = (UserError, "match their digest") if damaged else (ValueError, "no model")
    with pytest.raises(expected[0], match=expected[1]), opened_artifact(written, KINDS):
        raise ValueError("no model")


def test_content_comes_back_with_its_types(written):
    kind, read = read_artifact(written, KINDS)
    assert kind == "thing" and plain(read) == plain(content())


def test_the_same_content_is_the_same_bytes_whatever_the_name(written, tmp_path):
    write_artifact(tmp_path / "another name.pt", "thing", 1, content())
    assert (tmp_path / "another name.pt").read_bytes() == written.read_bytes()


def test_what_was_read_is_written_as_the_same_bytes(written, tmp_path):
    write_artifact(tmp_path / "again.pt", "thing", 1, read_artifact(written, KINDS)[1])
    assert (tmp_path / "again.pt").read_bytes() == written.read_bytes()


def test_shared_and_separate_objects_are_the_same_bytes(tmp_path):
    row, word = torch.ones(3), "word"
    shared = {"a": row, "b": row, "c": [word, word]}
    separate = {"a": row.clone(), "b": row.clone(), "c": [word, "".join(["wo", "rd"])]}
    for name, value in (("shared", shared), ("separate", separate)):
        write_artifact(tmp_path / name, "thing", 1, value)
    assert (tmp_path / "shared").read_bytes() == (tmp_path / "separate").read_bytes()


def test_another_process_writes_the_same_bytes(written, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[2]); from pathlib import Path;"
        "from test_artifact import content, write_artifact;"
        "write_artifact(Path(sys.argv[1]), 'thing', 1, content())"
    )
    other, tests = tmp_path / "other.pt", Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "PYTHONHASHSEED": "77"}
    subprocess.run([sys.executable, "-c", code, other, tests], check=True, env=environment)
    assert other.read_bytes() == written.read_bytes()


def test_the_order_of_numbers_in_memory_is_not_stored(tmp_path):
    weight = torch.arange(12.0).view(3, 4)
    for name, tensor in (("rows", weight), ("columns", weight.T.contiguous().T)):
        write_artifact(tmp_path / name, "thing", 1, {"weight": tensor})
    assert (tmp_path / "rows").read_bytes() == (tmp_path / "columns").read_bytes()


def test_a_view_is_stored_without_the_tensor_it_belongs_to(tmp_path):
    write_artifact(tmp_path / "view.pt", "thing", 1, {"row": torch.zeros(1000, 1000)[0]})
    assert (tmp_path / "view.pt").stat().st_size < 10_000


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", Path("x"), torch.float32])
def test_a_value_that_could_not_be_read_back_is_not_written(tmp_path, value):
    path = tmp_path / "thing.pt"
    with pytest.raises(AssertionError, match="no plain value"):
        write_artifact(path, "thing", 1, {"value": value})
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(written, monkeypatch):
    before = written.read_bytes()

    def full(document, file):
        file.write(b"part")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        write_artifact(written, "thing", 1, {})
    assert written.read_bytes() == before and list(written.parent.iterdir()) == [written]


# Damage and forgery -------------------------------------------------------------------------------


def test_a_flipped_byte_is_noticed_or_changes_nothing(written):
    whole, expected = written.read_bytes(), plain(content())
    refused = 0
    offsets = random.Random(0).sample(range(len(whole)), 200)
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= 0xFF
        written.write_bytes(damaged)
        try:
            _, read = read_artifact(written, KINDS)
        except UserError:
            refused += 1
        else:
            assert plain(read) == expected, offset
    assert refused > 10


def test_a_flipped_bit_of_any_weight_is_noticed(written):
    start = written.read_bytes().index(content()["tensors"]["float"].numpy().tobytes())
    for offset in range(0, 8 * 6 * 4, 7):
        damaged = bytearray(written.read_bytes())
        damaged[start + offset] ^= 1
        written.with_name("damaged.pt").write_bytes(damaged)
        assert "damaged" in refusal(written.with_name("damaged.pt"))


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999])
def test_a_truncated_file_is_refused(written, share):
    whole = written.read_bytes()
    written.write_bytes(whole[: int(len(whole) * share)])
    assert "damaged" in refusal(written)


def test_a_changed_value_with_the_old_digest_is_refused(written):
    document = torch.load(written, weights_only=True)
    document["content"]["numbers"][0] = 2
    torch.save(document, written)
    assert "do not match their digest" in refusal(written)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def save_bare(value, path):
    path.write_bytes(pickle.dumps(value))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("save", [torch.save, save_bare])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, save):
    trace = tmp_path / "trace"
    save({"format": "thing", "version": 1, "content": Bomb(trace)}, tmp_path / "bomb.pt")
    refusal(tmp_path / "bomb.pt")
    assert not trace.exists()
    # The bomb is a real one.
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists()


@pytest.mark.parametrize(
    "document",
    [
        [1, 2],
        torch.zeros(3),
        {"model": {}},
        {"format": ["thing"], "version": 1, "digest": "", "content": {}},
        {"format": "thing", "version": [1], "digest": "", "content": {}},
        {"format": "thing", "version": 1, "digest": 5, "content": {}},
    ],
)
def test_another_programs_file_is_refused(tmp_path, document):
    torch.save(document, tmp_path / "foreign.pt")
    refusal(tmp_path / "foreign.pt")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04", b"\x80\x02.", b"\x80\x04N."])
def test_a_file_that_is_no_archive_is_refused(tmp_path, data):
    (tmp_path / "text.pt").write_bytes(data)
    refusal(tmp_path / "text.pt")


def test_an_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "archive.pt", "w") as archive:
        archive.writestr("letter.txt", "dear model")
    refusal(tmp_path / "archive.pt")


def test_another_kind_and_another_version_are_named(written):
    message = refusal(written, {"checkpoint": 1, "quantized model": 2})
    assert "holds thing 1, but checkpoint 1 or quantized model 2 is needed" in message
    assert "holds thing 1, but thing 2 is needed" in refusal(written, {"thing": 2})


def test_a_missing_file_and_a_folder_are_sentences(tmp_path):
    assert "is missing" in refusal(tmp_path / "none.pt")
    with pytest.raises(UserError, match="Is a directory"):
        read_artifact(tmp_path, KINDS)


# Digest -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("numbers", [1, 100_000])
def test_a_full_disk_is_a_sentence_wherever_torch_meets_it(tmp_path, numbers, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with pytest.raises(UserError, match="No space left on device"):
        write_artifact(tmp_path / "file", "thing", 1, {"a": torch.zeros(numbers)})
    assert list(tmp_path.iterdir()) == []


def test_the_digest_depends_on_values_and_types_alone():
    digest = content_digest({"a": torch.arange(6).view(2, 3), "b": [1, 2]})
    strided = torch.arange(6).view(2, 3).T.contiguous().T
    assert content_digest({"a": strided, "b": (1, 2)}) == digest


@pytest.mark.parametrize(
    "other",
    [
        {"a": torch.tensor([1.0, 2.0]), "b": 2},
        {"a": torch.tensor([1, 2]), "b": 1},
        {"a": torch.tensor([[1.0, 2.0]]), "b": 1},
        {"a": torch.tensor([2.0, 1.0]), "b": 1},
        {"a": torch.tensor([1.0, 2.0]), "b": True},
        {"a": torch.tensor([1.0, 2.0]), "b": "1"},
        {"a": torch.tensor([1.0, 2.0]), "c": 1},
        {"a": [1.0, 2.0], "b": 1},
        {"a": torch.tensor([1.0, 2.0])},
    ],
)
def test_the_digest_changes_with_any_value_type_shape_or_name(other):
    assert content_digest({"a": torch.tensor([1.0, 2.0]), "b": 1}) != content_digest(other)
