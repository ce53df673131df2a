"""GPTQ costs a layer's output less than rounding, at the rate asked for, the same every time."""

import pytest
import torch

from stages.lm.quantization.gptq import GPTQ, Calibration, calibrate
from stages.lm.quantization.schemes import QuantizedWeight, dequantize

COLUMNS, ROWS = 96, 130


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gptq(tensors, known, bits):
    return GPTQ(tensors, known).codes(bits)


@pytest.fixture(scope="module")
def layer():
    """A matrix, inputs that go together, and a calibration that knows them."""
    inputs = draw(3000, 12, seed=1) @ draw(12, COLUMNS, seed=2) + 0.3 * draw(3000, COLUMNS, seed=3)
    known = Calibration({"w": inputs.T @ inputs / len(inputs)}, {"w": torch.ones(ROWS)})
    return 0.1 * draw(ROWS, COLUMNS), inputs, known


def output_error(weight, parts, inputs):
    return (inputs @ (dequantize(parts) - weight).T).square().mean().item()


def entropy(codes):
    shares = torch.bincount(codes.flatten().int() + 128).double() / codes.numel()
    return torch.special.entr(shares).sum().item() / 0.6931471805599453


@pytest.mark.parametrize("bits", [1.5, 2.5, 3.5])
def test_it_costs_the_output_less_than_plain_rounding_with_the_same_steps(layer, bits):
    weight, inputs, known = layer
    parts = gptq({"w": weight}, known, bits)["w"]
    plain = (weight / parts.scales.float()).round().clamp(-127, 127).to(torch.int8)
    rounded = QuantizedWeight(plain, parts.scales)
    assert output_error(weight, parts, inputs) < 0.5 * output_error(weight, rounded, inputs)


def test_each_code_rounds_the_weight_that_best_makes_up_for_the_codes_before_it(layer):
    weight, _, known = layer
    parts = gptq({"w": weight}, known, 2.5)["w"]
    hessian = known.inputs["w"].double()
    hessian += 0.01 * hessian.diagonal().mean() * torch.eye(COLUMNS)
    order = hessian.diagonal().argsort(descending=True)
    errors = dequantize(parts).double() - weight
    for index in range(COLUMNS):
        done, left = order[:index], order[index:]
        # Of all errors e in the columns left, those that minimize e^T H e given the errors made.
        best = -torch.linalg.solve(
            hessian[left][:, left], hessian[left][:, done] @ errors[:, done].T
        )
        wanted = (weight[:, order[index]] + best[0]) / parts.scales[:, 0]
        found = parts.codes[:, order[index]]
        assert (wanted.clamp(-8, 7) - found).abs().max() < 0.501


@pytest.mark.parametrize("bits", [1, 2, 2.625, 4, 6])
def test_a_weight_costs_the_bits_asked_for(layer, bits):
    weight, _, known = layer
    assert entropy(gptq({"w": weight}, known, bits)["w"].codes) == pytest.approx(bits, abs=0.25)


def test_more_bits_cost_the_output_less(layer):
    weight, inputs, known = layer
    errors = [
        output_error(weight, gptq({"w": weight}, known, bits)["w"], inputs)
        for bits in (1, 2, 3, 4, 5)
    ]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 * errors[0]


def test_codes_are_int8_with_one_float16_scale_a_row(layer):
    weight, _, known = layer
    for bits, limit in ((2, 8), (6, 127)):
        parts = gptq({"w": weight}, known, bits)["w"]
        assert parts.codes.shape == weight.shape and parts.codes.dtype == torch.int8
        assert parts.scales.shape == (ROWS, 1) and parts.scales.dtype == torch.float16
        assert (parts.scales > 0).all() and parts.codes.int().abs().max() <= limit


def test_codes_of_a_matrix_without_giants_fit_four_bits(layer):
    weight, _, known = layer
    codes = gptq({"w": weight}, known, 2)["w"].codes
    assert codes.min() >= -8 and codes.max() <= 7


def test_a_row_that_the_loss_feels_more_gets_smaller_steps(layer):
    weight, _, known = layer
    felt = torch.ones(ROWS)
    felt[:10] = 4
    parts = gptq({"w": weight}, Calibration(known.inputs, {"w": felt}), 2.5)["w"]
    ratio = parts.scales[10:].float().mean() / parts.scales[:10].float().mean()
    assert ratio == pytest.approx(2, rel=0.1)


def test_zeros_and_inputs_never_seen_are_no_trouble(layer):
    weight, _, known = layer
    nothing = Calibration({"w": torch.zeros(COLUMNS, COLUMNS)}, {"w": torch.zeros(ROWS)})
    assert dequantize(gptq({"w": weight}, nothing, 3)["w"]).isfinite().all()
    assert not dequantize(gptq({"w": torch.zeros(ROWS, COLUMNS)}, known, 3)["w"]).any()


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": True}, {"arch": "gpt2"}])
def test_calibration_knows_every_matrix_and_what_enters_it(make_model, fields):
    model = make_model(**fields)
    windows = torch.randint(0, 75, (20, 17), generator=torch.Generator().manual_seed(0))
    frequencies = torch.bincount(windows.flatten(), minlength=128) / windows.numel()
    known = calibrate(model, windows, frequencies)
    matrices = {name: weight for name, weight in model.state_dict().items() if weight.ndim == 2}
    assert set(known.gradients) == set(matrices)
    assert set(known.inputs) == {
        name
        for name in matrices
        if name != "position_embedding.weight"
        and (name != "token_embedding.weight" or model.config.tie_embeddings)
    }
    for name, weight in matrices.items():
        assert known.gradients[name].shape == (len(weight),) and known.gradients[name].max() > 0
    entered = model.blocks[0].attention_norm(model.embed(windows[:, :-1], 0)).flatten(0, 1)
    expected = entered.T @ entered / len(entered)
    torch.testing.assert_close(known.inputs["blocks.0.attention.qkv.weight"], expected)


def test_gradients_are_those_of_the_loss(make_model):
    model = make_model()
    windows = torch.randint(0, 75, (3, 17), generator=torch.Generator().manual_seed(0))
    known = calibrate(model, windows, torch.ones(128) / 128)
    logits = model(windows[:, :-1]).flatten(0, 1)
    wanted = torch.nn.functional.one_hot(windows[:, 1:].flatten(), 75)
    expected = (logits.softmax(-1) - wanted).square().mean(0)
    torch.testing.assert_close(known.gradients["head.weight"][:75], expected)
    assert not known.gradients["head.weight"][75:].any()


def test_calibration_leaves_the_model_as_it_was(make_model):
    model, untouched = make_model(), make_model()
    windows = torch.randint(0, 75, (3, 17), generator=torch.Generator().manual_seed(0))
    calibrate(model, windows, torch.ones(128) / 128)
    assert all(map(torch.equal, model.parameters(), untouched.parameters()))
    assert not any(block.attention.qkv._forward_hooks for block in model.blocks)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_same_calibration_gives_the_same_codes(layer):
    weight, _, known = layer
    first, second = (gptq({"w": weight.clone()}, known, 2.5)["w"] for _ in range(2))
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)
