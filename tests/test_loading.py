"""What is in a file decides how it is read; a file that is no model is refused in a sentence."""

from dataclasses import asdict

import pytest
import torch

from stages.lm.core.artifact import read_artifact, write_artifact
from stages.lm.core.errors import UserError
from stages.lm.inference.loading import load_model
from stages.lm.quantization.quantized_model import quantize_checkpoint


@pytest.fixture
def files(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "float.pt")
    quantize_checkpoint(checkpoint, "int8").save(tmp_path / "int8.pt")
    return tmp_path


def test_a_checkpoint_is_read_as_it_is(files, checkpoint):
    loaded = load_model(files / "float.pt")
    assert loaded.scheme == "float32" and loaded.provenance == checkpoint.provenance
    assert loaded.file_bytes == (files / "float.pt").stat().st_size
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, checkpoint.tensors[name])


def test_a_loaded_model_is_ready_for_inference_in_float32(files):
    for name in ("float.pt", "int8.pt"):
        model = load_model(files / name).model
        assert not model.training
        assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, False)}


def test_the_tokenizer_in_the_file_encodes_as_the_one_trained_with(files, tokenizer):
    text = "The lazy dog, 我们 🙂".encode()
    for name in ("float.pt", "int8.pt"):
        loaded = load_model(files / name).tokenizer
        assert loaded.encode(text) == tokenizer.encode(text)
        assert (loaded.name, loaded.pattern) == (tokenizer.name, tokenizer.pattern)


def test_another_artifact_is_no_model(tmp_path):
    write_artifact(tmp_path / "state.pt", "training state", 1, {})
    with pytest.raises(UserError, match="but checkpoint 2 or quantized model 3 is needed"):
        load_model(tmp_path / "state.pt")


def test_a_missing_model_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"none\.pt is missing; `dvc repro` makes it"):
        load_model(tmp_path / "none.pt")


def without(*path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        del content[path[-1]]

    return change


def replaced(value, *path):
    def change(content):
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("config"),
        without("config", "width"),
        without("tokenizer"),
        without("tokenizer", "vocabulary"),
        without("tokenizer", "pattern"),
        replaced(None, "config"),
        replaced(5, "config", "experts"),
        replaced(64, "config", "width"),
        replaced(5, "tokenizer"),
        replaced("?? 0", "tokenizer", "vocabulary"),
        replaced("QQ== 0", "tokenizer", "vocabulary"),
        replaced(None, "tokenizer", "vocabulary"),
    ],
)
@pytest.mark.parametrize(
    ("name", "kind", "version"),
    [("float.pt", "checkpoint", 2), ("int8.pt", "quantized model", 3)],
)
def test_a_forged_part_is_refused_in_a_sentence(files, name, kind, version, change):
    _, content = read_artifact(files / name, {kind: version})
    change(content)
    write_artifact(files / name, kind, version, content)
    with pytest.raises(UserError):
        load_model(files / name)


@pytest.mark.parametrize(
    "change",
    [
        without("tensors"),
        without("tensors", "head.weight"),
        replaced(None, "tensors"),
        replaced("weights", "tensors"),
    ],
)
def test_forged_weights_are_refused_in_a_sentence(files, change):
    _, content = read_artifact(files / "float.pt", {"checkpoint": 2})
    change(content)
    write_artifact(files / "float.pt", "checkpoint", 2, content)
    with pytest.raises(UserError):
        load_model(files / "float.pt")


@pytest.mark.parametrize(
    "change",
    [
        without("scheme"),
        without("packed"),
        without("scales_a_row"),
        without("scales_a_row", "head.weight"),
        replaced(None, "scales_a_row"),
        replaced(0, "scales_a_row", "head.weight"),
        replaced(2, "scales_a_row", "head.weight"),
        replaced(1.0, "scales_a_row", "head.weight"),
        replaced(1, "scales_a_row", "final_norm.weight"),
        replaced(0, "scales_a_row", "another"),
        replaced(torch.zeros(0, dtype=torch.uint8), "packed"),
        replaced(torch.zeros(2, 2, dtype=torch.uint8), "packed"),
        replaced(torch.zeros(5000), "packed"),
        replaced(1 << 28, "config", "width"),
        replaced(1 << 20, "config", "ff_width"),
        replaced(1 << 30, "config", "vocab_size"),
        replaced(1, "comment"),
    ],
)
def test_a_forged_quantized_part_is_refused_in_a_sentence(files, change):
    _, content = read_artifact(files / "int8.pt", {"quantized model": 3})
    change(content)
    write_artifact(files / "int8.pt", "quantized model", 3, content)
    with pytest.raises(UserError, match="holds no whole model"):
        load_model(files / "int8.pt")


def test_a_vocabulary_of_another_size_than_the_models_is_refused(files, checkpoint):
    _, content = read_artifact(files / "float.pt", {"checkpoint": 2})
    assert content["config"] == asdict(checkpoint.config)
    lines = content["tokenizer"]["vocabulary"].splitlines(keepends=True)
    content["tokenizer"]["vocabulary"] = "".join(lines[:-1])
    write_artifact(files / "float.pt", "checkpoint", 2, content)
    with pytest.raises(UserError, match="model of 300 tokens, but a vocabulary of 299"):
        load_model(files / "float.pt")
