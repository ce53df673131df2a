"""Schedule of the learning rate; Muon equals torch's; weight decay applies to matrices only."""

import pytest
import torch

from stages.lm.training.optim import Muon, build_optimizers, lr_multiplier


@pytest.fixture
def rates(make_train_settings):
    def schedule(total, **fields):
        settings = make_train_settings(**fields)
        return [lr_multiplier(step, total, settings) for step in range(total)]

    return schedule


def test_the_rate_rises_in_equal_steps_from_above_zero(rates):
    schedule = rates(100, warmup_steps=9, decay_fraction=0.2)
    assert schedule[:10] == pytest.approx([step / 10 for step in range(1, 11)])


def test_the_rate_holds_its_peak_between_warmup_and_decay(rates):
    schedule = rates(100, warmup_steps=9, decay_fraction=0.2)
    assert schedule[9:81] == pytest.approx([1.0] * 72)


def test_the_rate_falls_in_a_straight_line_towards_its_final_share(rates):
    schedule = rates(100, warmup_steps=0, decay_fraction=0.2, final_lr_fraction=0.1)
    assert schedule[80:] == pytest.approx([1 - 0.9 * step / 20 for step in range(20)])
    assert 0.1 < schedule[-1] < 0.15


def test_without_warmup_the_first_step_is_at_the_peak(rates):
    assert rates(10, warmup_steps=0, decay_fraction=0.5)[0] == pytest.approx(1)


def test_without_decay_the_rate_never_falls(rates):
    assert rates(10, warmup_steps=0, decay_fraction=0) == pytest.approx([1] * 10)


def test_with_full_decay_the_rate_falls_from_the_first_step(rates):
    schedule = rates(10, warmup_steps=0, decay_fraction=1, final_lr_fraction=0)
    assert schedule == pytest.approx([1 - step / 10 for step in range(10)])


def test_a_run_shorter_than_its_warmup_stays_below_the_peak(rates):
    schedule = rates(5, warmup_steps=100, decay_fraction=0.2)
    assert min(schedule) > 0 and max(schedule) <= 0.05


BOTH = pytest.mark.parametrize(
    "shape", [{"arch": "qwen3", "kv_heads": 2}, {"arch": "gpt2", "tie_embeddings": True}]
)


def with_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def matrices_apart(model):
    """The matrices of the blocks as parameters of their own, one each."""
    return [
        torch.nn.Parameter(part.clone())
        for parameter, rows in model.block_matrices()
        for part in parameter.detach().split(rows)
    ]


@BOTH
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_moves_every_matrix_as_torchs_own_does(
    make_model, make_train_settings, shape, weight_decay
):
    model = make_model(**shape)
    reference = matrices_apart(model)
    theirs = torch.optim.Muon(reference, lr=0.02, momentum=0.9, weight_decay=weight_decay)
    settings = make_train_settings(lr=0.02, momentum=0.9, weight_decay=weight_decay)
    ours = build_optimizers(model, settings, "bf16")
    for step in range(4):
        with_gradients(model, step)
        gradients = [p.grad.split(rows) for p, rows in model.block_matrices()]
        for parameter, gradient in zip(reference, sum(gradients, ()), strict=True):
            parameter.grad = gradient.clone()
        theirs.step()
        ours.step(1.0)
    for expected, found in zip(reference, matrices_apart(model), strict=True):
        # Both iterate in bf16; a product of a batch may round otherwise than a single one.
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


def test_muon_in_float32_gives_singular_values_near_one():
    parameter = torch.nn.Parameter(torch.zeros(24, 16))
    parameter.grad = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    group = {"params": [parameter], "rows": [24]}
    Muon([group], lr=1.0, momentum=0.9, weight_decay=0.0, dtype=torch.float32).step()
    values = torch.linalg.svdvals(parameter.detach()) / (24 / 16) ** 0.5
    assert values.min() > 0.6 and values.max() < 1.3


def test_each_matrix_of_a_stack_is_orthogonalized_by_itself():
    generator = torch.Generator().manual_seed(2)
    first, second = torch.randn(2, 8, 8, generator=generator)
    moved = []
    for scale in (1.0, 1000.0):
        parameter = torch.nn.Parameter(torch.zeros(16, 8))
        parameter.grad = torch.cat([first, second * scale])
        group = {"params": [parameter], "rows": [8, 8]}
        Muon([group], lr=1.0, momentum=0.5, weight_decay=0.0, dtype=torch.float32).step()
        moved.append(parameter.detach())
    torch.testing.assert_close(moved[0], moved[1], atol=1e-4, rtol=0)


@BOTH
@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_every_weight_is_trained_by_one_optimizer_and_only_matrices_decay(
    make_model, make_train_settings, shape, name
):
    model = make_model(**shape)
    optimizers = build_optimizers(model, make_train_settings(optimizer=name, weight_decay=0.25))
    decays = [
        (id(parameter), group["weight_decay"])
        for optimizer in optimizers.all
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(decays) == len(dict(decays)) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        matrix = parameter_name.startswith("blocks") and parameter.ndim == 2
        decayed = matrix or (name == "adamw" and parameter_name == "head.weight")
        assert dict(decays)[id(parameter)] == (0.25 if decayed else 0), parameter_name


def test_decay_shrinks_a_matrix_and_leaves_an_embedding(make_model, make_train_settings):
    model = make_model().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = make_train_settings(optimizer="adamw", weight_decay=0.5, lr=0.1)
    optimizers = build_optimizers(model, settings)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizers.step(1.0)
    after = model.state_dict()
    torch.testing.assert_close(after["head.weight"], before["head.weight"] * 0.95)
    assert torch.equal(after["token_embedding.weight"], before["token_embedding.weight"])


def test_the_betas_and_rates_are_those_of_the_settings(make_model, make_train_settings):
    settings = make_train_settings(
        beta1=0.8, beta2=0.9, lr=0.4, embedding_lr=0.2, head_lr=0.1, momentum=0.7
    )
    muon, adamw = build_optimizers(make_model(), settings).all
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.9)}
    assert [group["lr"] for group in adamw.param_groups] == [0.2, 0.1]
    assert {(group["lr"], group["momentum"]) for group in muon.param_groups} == {(0.4, 0.7)}


def test_a_rate_scales_every_peak_and_clears_the_gradients(make_model, make_train_settings):
    model = make_model()
    optimizers = build_optimizers(model, make_train_settings(lr=0.4, embedding_lr=0.2, head_lr=0.1))
    for rate in (0.5, 0.25):
        with_gradients(model, 1)
        optimizers.step(rate)
        assert all(parameter.grad is None for parameter in model.parameters())
    found = [group["lr"] for each in optimizers.all for group in each.param_groups]
    assert set(found) == {0.1, 0.05, 0.025}


def test_a_restored_state_continues_with_the_same_bits(make_model, make_train_settings):
    model, twin = make_model(), make_model()
    whole = build_optimizers(model, make_train_settings())
    first, second = (build_optimizers(twin, make_train_settings()) for _ in range(2))
    for step in range(4):
        with_gradients(model, step)
        whole.step(1 / (step + 1))
    for step, half in enumerate((first, first, second, second)):
        if step == 2:
            second.load_state_dict(first.state_dict())
        with_gradients(twin, step)
        half.step(1 / (step + 1))
    for expected, found in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(expected, found)
