"""The learning rate rises, holds and falls; only matrices decay."""

import pytest
import torch

from stages.lm.optim import build_optimizer, learning_rate, set_learning_rate


@pytest.fixture
def rates(make_train_settings):
    def schedule(total, **fields):
        settings = make_train_settings(**fields)
        return [learning_rate(step, total, settings) for step in range(total)]

    return schedule


def test_the_rate_rises_in_equal_steps_from_above_zero(rates):
    schedule = rates(100, lr=1.0, warmup_steps=9, decay_fraction=0.2)
    assert schedule[:10] == pytest.approx([step / 10 for step in range(1, 11)])


def test_the_rate_holds_its_peak_between_warmup_and_decay(rates):
    schedule = rates(100, lr=0.5, warmup_steps=9, decay_fraction=0.2)
    assert schedule[9:81] == pytest.approx([0.5] * 72)


def test_the_rate_falls_in_a_straight_line_towards_its_final_share(rates):
    schedule = rates(100, lr=1.0, warmup_steps=0, decay_fraction=0.2, final_lr_fraction=0.1)
    assert schedule[80:] == pytest.approx([1 - 0.9 * step / 20 for step in range(20)])
    assert 0.1 < schedule[-1] < 0.15


def test_without_warmup_the_first_step_is_at_the_peak(rates):
    assert rates(10, lr=0.3, warmup_steps=0, decay_fraction=0.5)[0] == pytest.approx(0.3)


def test_without_decay_the_rate_never_falls(rates):
    assert rates(10, lr=0.3, warmup_steps=0, decay_fraction=0) == pytest.approx([0.3] * 10)


def test_with_full_decay_the_rate_falls_from_the_first_step(rates):
    schedule = rates(10, lr=1, warmup_steps=0, decay_fraction=1, final_lr_fraction=0)
    assert schedule == pytest.approx([1 - step / 10 for step in range(10)])


def test_a_run_shorter_than_its_warmup_stays_below_the_peak(rates):
    schedule = rates(5, lr=1.0, warmup_steps=100, decay_fraction=0.2)
    assert min(schedule) > 0 and max(schedule) <= 0.05


@pytest.mark.parametrize("shape", [{"arch": "qwen3"}, {"arch": "gpt2", "tie_embeddings": True}])
def test_no_norm_bias_or_embedding_decays_and_every_other_weight_does(
    make_model, make_train_settings, shape
):
    model = make_model(**shape)
    optimizer = build_optimizer(model, make_train_settings(weight_decay=0.25))
    decays = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(decays) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        spared = "norm" in name or "bias" in name or "embedding" in name
        assert decays[id(parameter)] == (0 if spared else 0.25), name


def test_decay_shrinks_a_matrix_and_leaves_an_embedding(make_model, make_train_settings):
    model = make_model().requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer(model, make_train_settings(weight_decay=0.5, lr=0.1))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    torch.testing.assert_close(after["head.weight"], before["head.weight"] * 0.95)
    assert torch.equal(after["token_embedding.weight"], before["token_embedding.weight"])


def test_the_betas_are_those_of_the_settings(make_model, make_train_settings):
    optimizer = build_optimizer(make_model(), make_train_settings(beta1=0.8, beta2=0.9))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.9)}


def test_a_new_rate_reaches_every_group(make_model, make_train_settings):
    optimizer = build_optimizer(make_model(), make_train_settings())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
