"""What the system cannot read is not called damaged, and nobody is told to remove it."""

import builtins
import errno
import io
import os
import re
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tokens_on_disk import write_split

from stages import corpus, tokenize_text
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.corpus.texts import Text
from stages.lm.data.dataset import TokenData, write_meta
from stages.lm.data.meta import TokenizerMeta
from stages.lm.data.splits import SPLITS, read_chunks
from stages.lm.inference import loading
from stages.lm.inference.loading import load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.pretrained.files import base_digest
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.pretrained.tokenizer import base_tokenizer
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.settings.loader import read_params
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.training.resume import ResumeStore, RunIdentity

ERRORS = {
    **{errno.EACCES: "permission", errno.EPERM: "permission", errno.EIO: "Check the disk"},
    **{errno.ENOMEM: "Close other programs", errno.EMFILE: "ulimit", errno.ENFILE: "are open"},
    **{errno.EISDIR: "A folder is", errno.ELOOP: "circle", errno.ESTALE: "Mend that"},
}
"""Errors of the system, and a word of the remedy."""
ADVICE = re.compile(r"\b(remove|delete|damaged|incomplete|dvc repro|init_from)\b", re.IGNORECASE)
"""What is said about damage only."""
STORE = RunIdentity({"train.lr": 0.01})
SETTINGS = TokenizeSettings(
    tokenizer="own.tiktoken", pattern="gpt-2", vocab_size=300, val_fraction=0.1, test_fraction=0.1
)
READERS = {
    "models/checkpoint.pt": lambda path: Checkpoint.load(path),
    "models/quantized.pt": load_model,
    "models/float.pt": load_model,
    f"resume/{STORE.fingerprint}/state.pt": lambda _: ResumeStore(Path("resume"), STORE).load(),
    **{
        f"models/tokens/{name}": lambda path: TokenData.load(path.parent)
        for name in ("train.npy", "test.npy", "merges.npy", "meta.json", "tokenizer.tiktoken")
    },
    "data/input.txt": lambda path: list(read_chunks(path, range(9))),
    "data/text to copy.txt": lambda path: corpus.copy_file(path, path.with_name("copy")),
    "data/text to check.txt": lambda path: Text("", path).is_blank(),
    "data/text to digest.txt": lambda path: Text("", path).sha256(),
    "data/base/own.tiktoken": lambda _: tokenize_text.make_tokenizer(SETTINGS, None),
    "data/base/own.pt": lambda _: PretrainedModel.open("own.pt"),
    "data/base/own vocabulary.pt": lambda path: base_tokenizer(path.name),
    "data/base/theirs/config.json": lambda _: PretrainedModel.open("theirs"),
    "data/base/theirs/tokenizer.json": lambda _: base_tokenizer("theirs"),
    "data/base/old/merges.txt": lambda _: base_tokenizer("old"),
    "data/base/theirs/model.safetensors": lambda path: base_digest(path.parent, None),
    "data/base/theirs/weights/model.safetensors": lambda path: next(
        PretrainedModel("", path.parent, None)._stored()
    ),
    "metrics/corpus.json": lambda _: corpus.refuse_to_replace_own_data(),
    "params.yaml": read_params,
}
"""Every kind of file that is read, and how."""


@pytest.fixture(scope="module")
def places(tmp_path_factory, checkpoint, tokenizer):
    """A folder with a sound file, or one that is not reached, for each reader."""
    root = tmp_path_factory.mktemp("project")
    for name in READERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    for name in ("models/checkpoint.pt", "models/float.pt", "data/base/own.pt"):
        checkpoint.save(root / name)
    checkpoint.save(root / "data/base/own vocabulary.pt")
    quantize_checkpoint(checkpoint, "int8").save(root / "models/quantized.pt")
    ResumeStore(root / "resume", STORE).save({"step": 5})
    tokens, ids = root / "models" / "tokens", list(range(200))
    splits = {split: write_split(tokens, split, [ids], 300, 200) for split in SPLITS}
    name = TokenizerMeta("bpe", tokenizer.pattern)
    write_meta(tokens, name, tokenizer.to_text(), tokenizer.merges(), splits)
    (root / "data/base/old/vocab.json").write_text("{}")
    save_file({}, root / "data/base/theirs/weights/model.safetensors")
    return root


@pytest.fixture
def project(places, monkeypatch):
    """The same, as the project that the paths name."""
    monkeypatch.chdir(places)
    monkeypatch.setattr(paths, "ROOT", places)
    monkeypatch.setattr(paths, "BASE", places / "data" / "base")
    monkeypatch.setattr(paths, "CORPUS_METRICS", places / "metrics" / "corpus.json")
    return places


def check(name, read, path, number):
    """The sentence about an error of the system."""
    with pytest.raises(UserError) as caught:
        read(path)
    message = str(caught.value)
    assert os.strerror(number) in message and Path(name).name in message, message
    assert ERRORS[number] in message and not ADVICE.search(message), message


@pytest.mark.parametrize("name", READERS)
def test_an_error_of_the_system_is_told_as_one(project, name, monkeypatch):
    path, read, real = project / name, READERS[name], io.open
    before = path.read_bytes()
    for number in ERRORS:

        def fail(file, *args, number=number, **named):
            if isinstance(file, str | Path) and Path(file).absolute() == path:
                raise OSError(number, os.strerror(number))
            return real(file, *args, **named)

        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", fail)
            patch.setattr(io, "open", fail)
            check(name, read, path, number)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
@pytest.mark.parametrize("name", [name for name in READERS if "base" not in name])
def test_a_folder_a_circle_and_a_link_to_nothing_are_told_as_such(project, name):
    path, read = project / name, READERS[name]
    aside = path.rename(path.with_name("aside"))
    try:
        path.mkdir()
        check(name, read, path, errno.EISDIR)
        path.rmdir()
        path.symlink_to(path.name)
        check(name, read, path, errno.ELOOP)
        path.unlink()
        path.symlink_to("/an unmounted drive/file")
        with pytest.raises(UserError, match="unmounted drive") as caught:
            read(path)
        assert not ADVICE.search(str(caught.value)) and path.is_symlink()
        path.unlink()
    finally:
        aside.rename(path)


@pytest.mark.parametrize("name", READERS)
def test_a_file_without_permissions_is_told_as_such(project, name):
    path = project / name
    path.chmod(0)
    try:
        if os.access(path, os.R_OK):
            pytest.skip("root may read everything")
        check(name, READERS[name], path, errno.EACCES)
    finally:
        path.chmod(0o644)


@pytest.mark.parametrize("name", ["models/quantized.pt", "models/float.pt"])
@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory: 9 bytes")])
def test_too_little_memory_is_no_damage(project, name, error, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(loading, "load_tokenizer", fail)
    check(name, load_model, project / name, errno.ENOMEM)


def test_a_damaged_record_of_the_text_is_not_to_be_removed(project):
    """Without it the sample would take the place of the user's text."""
    path = project / "metrics" / "corpus.json"
    for damage in ("", "{", "[" * 100_000, "\0"):
        path.write_text(damage)
        with pytest.raises(UserError, match="git checkout metrics/") as caught:
            corpus.refuse_to_replace_own_data()
        assert not re.search("remove|move it|dvc repro", str(caught.value))
    path.write_text("{}")
