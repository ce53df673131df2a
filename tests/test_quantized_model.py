"""A quantized weight is within half a step of its original, and a file of them is a model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lm.core.artifact import read_artifact
from stages.lm.inference.loading import load_model
from stages.lm.model.checkpoint import build_model
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.quantized_model import (
    QuantizedModel,
    quantize_checkpoint,
    shapes_of,
    unpack_tensors,
)
from stages.lm.quantization.rans import decode_with_numpy
from stages.lm.quantization.schemes import (
    QuantizedWeight,
    dequantize,
    quantize_int4,
    quantize_int8,
    to_f16,
)


def stored_parts(weight):
    """The tensors of a quantized or a float16 weight."""
    return [weight.codes, weight.scales] if isinstance(weight, QuantizedWeight) else [weight]


SCHEMES = pytest.mark.parametrize("scheme", ["int8", "int4", "f16"])


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
    exponent=st.integers(-4, 4),
)
def test_int8_is_within_half_a_scale_of_every_weight(seed, rows, columns, exponent):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * 10.0**exponent
    parts = quantize_int8(weight)
    step = parts.scales.float()
    assert ((dequantize(parts) - weight).abs() <= step * (0.5 + 1e-5)).all()
    # And the step is no larger than the row needs: float16 has eleven bits.
    needed = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=2**-24)
    assert (step <= needed * (1 + 2**-10) + 2**-24).all()


def test_the_largest_weight_of_a_row_has_a_code_that_fits():
    weight = torch.tensor([[1.0, -1.0, 0.5], [-3e-3, 1e-3, 0.0], [6e4, -6e4, 1.0]])
    codes = quantize_int8(weight).codes
    assert codes.dtype == torch.int8 and codes.abs().amax(1).tolist() == [127, 127, 127]


def test_codes_have_one_float16_scale_a_row():
    parts = quantize_int8(torch.randn(5, 40))
    assert parts.codes.shape == (5, 40)
    assert parts.scales.shape == (5, 1) and parts.scales.dtype == torch.float16


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(3, 8)
    weight[1] = torch.randn(8)
    parts = quantize_int8(weight)
    restored = dequantize(parts)
    assert (parts.scales > 0).all() and not parts.codes[[0, 2]].any()
    assert not restored[0].any() and not restored[2].any() and restored[1].any()


def test_a_row_too_small_for_float16_stays_finite_and_small():
    restored = dequantize(quantize_int8(torch.full((1, 8), 1e-30)))
    assert restored.isfinite().all() and restored.abs().max() <= 2**-24


def test_negating_a_weight_negates_its_codes():
    weight = torch.randn(4, 30)
    assert torch.equal(quantize_int8(-weight).codes, -quantize_int8(weight).codes)


def test_quantizing_what_was_quantized_changes_nothing():
    once = dequantize(quantize_int8(torch.randn(6, 50)))
    torch.testing.assert_close(dequantize(quantize_int8(once)), once, rtol=1e-3, atol=0)


@given(seed=st.integers(0, 2**31), columns=st.sampled_from([64, 128, 48, 1]))
def test_int4_finds_no_worse_scale_than_the_one_its_largest_weight_gives(seed, columns):
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(seed))
    parts = quantize_int4(weight)
    codes, scales = parts.codes, parts.scales
    assert codes.dtype == torch.int8 and codes.min() >= -8 and codes.max() <= 7
    assert scales.dtype == torch.float16
    assert scales.shape == (5, columns // 64 if columns % 64 == 0 else 1)
    groups = weight.view(*scales.shape, -1)
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    plain = (largest / -8).half().float()
    simple = (groups / plain).round().clamp(-8, 7) * plain
    error = (dequantize(parts).view_as(groups) - groups).square().sum(2)
    assert (error <= (simple - groups).square().sum(2) * (1 + 1e-5) + 1e-12).all()


def test_int4_of_zeros_is_zero_and_of_giants_finite():
    assert not dequantize(quantize_int4(torch.zeros(2, 64))).any()
    giants = dequantize(quantize_int4(torch.full((2, 64), 1e9)))
    assert giants.isfinite().all() and (giants > 6e4).all()


def test_f16_rounds_and_keeps_large_numbers_finite():
    weight = torch.tensor([0.1, -2.0, 1e6, -1e6, 0.0])
    stored = to_f16(weight)
    assert stored.dtype == torch.float16
    assert stored.tolist() == [weight.half()[0].item(), -2.0, 65504.0, -65504.0, 0.0]


def test_int8_quantizes_matrices_alone(checkpoint):
    quantized = quantize_checkpoint(checkpoint, "int8")
    for name, weight in checkpoint.tensors.items():
        assert isinstance(quantized.tensors[name], QuantizedWeight) is (weight.ndim == 2)
    assert {name for name, t in checkpoint.tensors.items() if t.ndim == 1}


def test_f16_quantizes_nothing(checkpoint):
    for name, weight in quantize_checkpoint(checkpoint, "f16").tensors.items():
        assert torch.equal(weight, checkpoint.tensors[name].half())


def test_no_scheme_stores_more_than_its_numbers_have(checkpoint):
    sizes = {"int8": 8, "int4": 4, "f16": 16}
    for scheme, bits in sizes.items():
        quantized = quantize_checkpoint(checkpoint, scheme)
        parts = [part for weight in quantized.tensors.values() for part in stored_parts(weight)]
        halves = sum(part.numel() for part in parts if part.dtype == torch.float16)
        codes = sum(part.numel() for part in parts if part.dtype == torch.int8)
        tables = 2 * 256 * (len(parts) + 4)
        assert quantized.packed.numel() < (bits * codes + 16 * halves) / 8 + tables


def test_bits_per_weight_are_those_of_the_stream(checkpoint):
    quantized = quantize_checkpoint(checkpoint, "int4")
    weights = sum(weight.numel() for weight in checkpoint.tensors.values())
    assert quantized.bits_per_weight() == pytest.approx(8 * quantized.packed.numel() / weights)


@SCHEMES
def test_what_is_written_comes_back(checkpoint, tmp_path, scheme):
    quantized = replace(quantize_checkpoint(checkpoint, scheme), measured={"increase": 0.25})
    quantized.save(tmp_path / "quantized.pt")
    _, content = read_artifact(tmp_path / "quantized.pt", {"quantized model": 3})
    loaded = QuantizedModel.from_content(content)
    assert (loaded.config, loaded.scheme) == (checkpoint.config, scheme)
    assert loaded.measured == {"increase": 0.25} and loaded.tokenizer == checkpoint.tokenizer
    assert list(loaded.tensors) == list(quantized.tensors)
    for name, weight in quantized.tensors.items():
        assert type(loaded.tensors[name]) is type(weight)
        pairs = zip(stored_parts(loaded.tensors[name]), stored_parts(weight), strict=True)
        for read, written in pairs:
            assert read.dtype == written.dtype and torch.equal(read, written)


def test_a_tied_embedding_is_stored_once(make_model, checkpoint):
    tied = make_model(tie_embeddings=True)
    untied = make_model()
    sizes = []
    for model in (tied, untied):
        given = replace(checkpoint, config=model.config, tensors=model.state_dict())
        sizes.append(quantize_checkpoint(given, "int8").packed.numel())
    matrix = tied.token_embedding.weight.numel()
    assert 0.8 * matrix < sizes[1] - sizes[0] < 1.2 * matrix


@SCHEMES
def test_a_stored_model_gives_the_logits_of_its_dequantized_weights(checkpoint, tmp_path, scheme):
    quantized = quantize_checkpoint(checkpoint, scheme)
    quantized.save(tmp_path / "quantized.pt")
    loaded = load_model(tmp_path / "quantized.pt")
    tokens = torch.arange(16).unsqueeze(0)
    expected = build_model(checkpoint.config, quantized.dequantized())(tokens)
    assert torch.equal(loaded.model(tokens), expected)
    assert loaded.scheme == scheme and loaded.provenance == checkpoint.provenance


@SCHEMES
def test_the_file_is_read_without_running_code(checkpoint, tmp_path, scheme):
    quantize_checkpoint(checkpoint, scheme).save(tmp_path / "quantized.pt")
    document = torch.load(tmp_path / "quantized.pt", weights_only=True)
    assert document["format"] == "quantized model" and document["content"]["scheme"] == scheme


@SCHEMES
def test_the_same_checkpoint_is_the_same_file(checkpoint, tmp_path, scheme):
    for name in ("first.pt", "second.pt"):
        quantize_checkpoint(checkpoint, scheme).save(tmp_path / name)
    assert (tmp_path / "first.pt").read_bytes() == (tmp_path / "second.pt").read_bytes()


def test_int8_changes_the_predictions_little(checkpoint):
    quantized = quantize_checkpoint(checkpoint, "int8")
    tokens = torch.arange(16).unsqueeze(0)
    exact = checkpoint.build()(tokens).log_softmax(-1)
    rounded = build_model(checkpoint.config, quantized.dequantized())(tokens).log_softmax(-1)
    divergence = (exact.exp() * (exact - rounded)).sum(-1)
    assert 0 < divergence.mean() < 0.01


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("fields", [{"layers": 1}, {"layers": 12}, {"tie_embeddings": True}])
def test_the_shapes_are_those_of_the_model_in_their_order(make_config, arch, fields):
    config = make_config(arch, **fields)
    expected = {name: weight.shape for name, weight in Transformer(config).state_dict().items()}
    assert list(shapes_of(config, 999).items()) == list(expected.items())


def test_a_gigantic_shape_is_refused_before_anything_of_its_size_is_made(make_config):
    config = make_config("qwen3", vocab_size=2_000_000_000)
    shapes = shapes_of(config, 100)
    scales = {name: int(len(shape) == 2) for name, shape in shapes.items()}
    with pytest.raises(ValueError, match="cannot lie in 1000 bytes"):
        unpack_tensors(shapes, scales, np.zeros(1000, np.uint8), decode_with_numpy)
