"""A quantized weight is within half a step of its original, and a file of them is a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.lm.checkpoint import build_model
from stages.lm.loading import load_model
from stages.lm.quantization import (
    dequantize,
    quantize_checkpoint,
    quantize_int8,
    to_f16,
)

SCHEMES = pytest.mark.parametrize("scheme", ["int8", "f16"])


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
    step = parts["scales"].float()
    assert ((dequantize(parts) - weight).abs() <= step * (0.5 + 1e-5)).all()
    # And the step is no larger than the row needs: float16 has eleven bits.
    needed = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=2**-24)
    assert (step <= needed * (1 + 2**-10) + 2**-24).all()


def test_the_largest_weight_of_a_row_has_a_code_that_fits():
    weight = torch.tensor([[1.0, -1.0, 0.5], [-3e-3, 1e-3, 0.0], [6e4, -6e4, 1.0]])
    codes = quantize_int8(weight)["codes"]
    assert codes.dtype == torch.int8 and codes.abs().amax(1).tolist() == [127, 127, 127]


def test_codes_have_one_float16_scale_a_row():
    parts = quantize_int8(torch.randn(5, 40))
    assert parts["codes"].shape == (5, 40)
    assert parts["scales"].shape == (5, 1) and parts["scales"].dtype == torch.float16


def test_a_row_of_zeros_stays_zero():
    weight = torch.zeros(3, 8)
    weight[1] = torch.randn(8)
    parts = quantize_int8(weight)
    restored = dequantize(parts)
    assert (parts["scales"] > 0).all() and not parts["codes"][[0, 2]].any()
    assert not restored[0].any() and not restored[2].any() and restored[1].any()


def test_a_row_too_small_for_float16_stays_finite_and_small():
    restored = dequantize(quantize_int8(torch.full((1, 8), 1e-30)))
    assert restored.isfinite().all() and restored.abs().max() <= 2**-24


def test_negating_a_weight_negates_its_codes():
    weight = torch.randn(4, 30)
    assert torch.equal(quantize_int8(-weight)["codes"], -quantize_int8(weight)["codes"])


def test_quantizing_what_was_quantized_changes_nothing():
    once = dequantize(quantize_int8(torch.randn(6, 50)))
    torch.testing.assert_close(dequantize(quantize_int8(once)), once, rtol=1e-3, atol=0)


def test_f16_rounds_and_keeps_large_numbers_finite():
    weight = torch.tensor([0.1, -2.0, 1e6, -1e6, 0.0])
    stored = to_f16(weight)
    assert stored.dtype == torch.float16
    assert stored.tolist() == [weight.half()[0].item(), -2.0, 65504.0, -65504.0, 0.0]


def test_int8_quantizes_matrices_alone(checkpoint):
    quantized = quantize_checkpoint(checkpoint, "int8")
    for name, weight in checkpoint.tensors.items():
        assert ("codes" in quantized.tensors[name]) is (weight.ndim == 2)
    assert {name for name, t in checkpoint.tensors.items() if t.ndim == 1}


def test_f16_quantizes_nothing(checkpoint):
    for name, parts in quantize_checkpoint(checkpoint, "f16").tensors.items():
        assert set(parts) == {"values"}
        assert torch.equal(parts["values"], checkpoint.tensors[name].half())


def test_int8_stores_a_byte_a_weight_and_two_a_row(checkpoint):
    quantized = quantize_checkpoint(checkpoint, "int8")
    matrices = [tensor for tensor in checkpoint.tensors.values() if tensor.ndim == 2]
    vectors = sum(tensor.numel() for tensor in checkpoint.tensors.values() if tensor.ndim == 1)
    weights = sum(tensor.numel() for tensor in matrices)
    bits = 8 * weights + 16 * sum(len(tensor) for tensor in matrices) + 16 * vectors
    assert quantized.bits_per_weight() == pytest.approx(bits / (weights + vectors))
    assert 8 < quantized.bits_per_weight() < 8.6


def test_f16_stores_sixteen_bits_a_weight(checkpoint):
    assert quantize_checkpoint(checkpoint, "f16").bits_per_weight() == 16


def test_a_matrix_costs_eight_bits_and_its_share_of_the_scale(checkpoint):
    only = {"matrix": torch.randn(10, 64)}
    quantized = quantize_checkpoint(
        type(checkpoint)(checkpoint.config, only, checkpoint.tokenizer, {}), "int8"
    )
    assert quantized.bits_per_weight() == 8 + 16 / 64


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
