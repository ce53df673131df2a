"""A checkpoint is a whole model: written, read and built again without a change."""

from dataclasses import asdict, replace

import pytest
import torch

from stages.lm.core.artifact import write_artifact
from stages.lm.core.errors import UserError
from stages.lm.model.checkpoint import Checkpoint, build_model


def test_a_checkpoint_comes_back(checkpoint, tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt")
    read = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert read.config == checkpoint.config
    assert read.tokenizer == checkpoint.tokenizer and read.provenance == checkpoint.provenance
    assert list(read.tensors) == list(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        assert torch.equal(read.tensors[name], tensor)


def test_a_reloaded_checkpoint_is_written_as_the_same_bytes(checkpoint, tmp_path):
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    checkpoint.save(first)
    Checkpoint.load(first).save(second)
    assert first.read_bytes() == second.read_bytes()


def test_the_built_model_gives_the_logits_of_the_stored_one(checkpoint, make_model, tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt")
    original = make_model(vocab_size=checkpoint.config.vocab_size, kv_heads=2)
    tokens = torch.arange(10).unsqueeze(0)
    built = Checkpoint.load(tmp_path / "checkpoint.pt").build()
    assert torch.equal(built(tokens), original(tokens))
    assert not built.training and not any(p.requires_grad for p in built.parameters())


def changed(checkpoint, **tensors):
    return checkpoint.tensors | tensors


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda c: changed(c, **{"head.weight": torch.zeros(3, 3)}), "head.weight"),
        (lambda c: changed(c, extra=torch.zeros(1)), "extra"),
        (lambda c: {k: v for k, v in c.tensors.items() if k != "head.weight"}, "head.weight"),
        (lambda c: {}, "larger than the weights"),
    ],
    ids=["shape", "extra", "missing", "none"],
)
def test_weights_that_do_not_fit_the_shape_are_named(checkpoint, make, named):
    with pytest.raises(UserError, match="do not fit") as caught:
        build_model(checkpoint.config, make(checkpoint))
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_shape_that_does_not_fit_the_weights_is_refused(checkpoint):
    with pytest.raises(UserError, match="do not fit"):
        build_model(replace(checkpoint.config, width=64), checkpoint.tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["token_embedding.weight", "head.weight", "final_norm.weight"])
def test_a_weight_that_is_no_number_is_named(checkpoint, name, value):
    weight = checkpoint.tensors[name].clone()
    weight.view(-1)[-1] = value
    with pytest.raises(UserError, match=f"{name} holds a value that is no number"):
        build_model(checkpoint.config, checkpoint.tensors | {name: weight})


def test_numbers_whose_sum_is_too_large_are_numbers(checkpoint):
    weight = torch.full_like(checkpoint.tensors["head.weight"], 3e38)
    build_model(checkpoint.config, checkpoint.tensors | {"head.weight": weight})


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.int8])
def test_weights_of_another_type_are_refused(checkpoint, kind):
    weight = checkpoint.tensors["head.weight"].to(kind)
    with pytest.raises(TypeError, match="not all float32"):
        replace(checkpoint, tensors=checkpoint.tensors | {"head.weight": weight})


@pytest.mark.parametrize("part", ["config", "tensors", "tokenizer", "provenance"])
def test_a_checkpoint_without_a_part_is_refused(checkpoint, tmp_path, part):
    content = {
        "config": asdict(checkpoint.config),
        "tensors": checkpoint.tensors,
        "tokenizer": checkpoint.tokenizer,
        "provenance": checkpoint.provenance,
    }
    del content[part]
    write_artifact(tmp_path / "checkpoint.pt", "checkpoint", 2, content)
    with pytest.raises(UserError, match=f"lacks a part of a model.*{part}"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_configuration_with_another_field_is_refused(checkpoint, tmp_path):
    content = {
        "config": asdict(checkpoint.config) | {"experts": 8},
        "tensors": checkpoint.tensors,
        "tokenizer": checkpoint.tokenizer,
        "provenance": checkpoint.provenance,
    }
    write_artifact(tmp_path / "checkpoint.pt", "checkpoint", 2, content)
    with pytest.raises(UserError, match="experts"):
        Checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_quantized_model_is_not_taken_for_a_checkpoint(checkpoint, tmp_path):
    write_artifact(tmp_path / "checkpoint.pt", "quantized model", 1, {})
    with pytest.raises(UserError, match="holds quantized model 1, but checkpoint 2 is needed"):
        Checkpoint.load(tmp_path / "checkpoint.pt")
