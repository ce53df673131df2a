"""Adapters start as zero, are the only trained weights, and are merged in the checkpoint."""

import pytest
import torch

from stages.lm.core.artifact import read_artifact, write_artifact
from stages.lm.model.transformer import Transformer
from stages.lm.training import lora
from stages.lm.training.lora import TARGETS, adapted_layers, adapter_matrices, add_adapters
from stages.lm.training.trainer import Trainer

ARCHITECTURES = {"qwen3": {"kv_heads": 2}, "gpt2": {"tie_embeddings": True}}


@pytest.fixture(params=ARCHITECTURES)
def base(request, make_model):
    """A model to start from, every weight of it random."""
    return make_model(request.param, **ARCHITECTURES[request.param])


@pytest.fixture
def adapted(base):
    """A function from targets to a copy of the base with large random adapters."""

    def make(targets="all", rank=3, alpha=6.0):
        model = Transformer(base.config).eval()
        model.load_state_dict(base.state_dict())
        add_adapters(model, targets, rank, alpha)
        with torch.no_grad():
            for matrix in adapter_matrices(model):
                matrix.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
        return model

    return make


@pytest.fixture
def make_run(base, make_train_settings, machine, data):
    def make(**fields):
        settings = make_train_settings(adapt="lora", **fields)
        return Trainer(Transformer(base.config), data, settings, machine)

    return make


@pytest.fixture
def begun(make_run, base):
    def make(**fields):
        run = make_run(**fields)
        torch.seed()
        run.initialize("base", base.state_dict())
        return run

    return make


@pytest.fixture
def tokens():
    return torch.randint(75, (2, 16), generator=torch.Generator().manual_seed(1))


def adapter_names(model):
    return {name for name, _ in model.named_parameters() if "lora_" in name}


def frozen(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}


def run_to_the_end(run, steps=10**9):
    asked = iter(range(1, steps + 1))
    run.fit(lambda: None, lambda: next(asked) == steps)
    return run


# The adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", TARGETS)
def test_every_matrix_of_the_targets_has_an_adapter_of_its_own(base, adapted, targets):
    model, names = adapted(targets, rank=3), dict(base.named_parameters())
    split_sizes = {id(parameter): rows for parameter, rows in base.block_matrices()}
    parts = {name.split(".")[2] for name in adapted_layers(model)}
    assert parts == set(TARGETS[targets])
    assert len(adapted_layers(model)) == 2 * 2 * len(parts)
    for name, layer in adapted_layers(model).items():
        weight = names[f"{name}.weight"]
        assert layer.split_sizes == split_sizes[id(weight)] and sum(
            layer.split_sizes
        ) == weight.size(0)
        assert layer.lora_a.shape == (3 * len(layer.split_sizes), weight.size(1))
        assert layer.lora_b.shape == (weight.size(0), 3)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == adapter_names(model)


def test_stacked_matrices_have_separate_adapters(adapted, base):
    """Each by alpha / rank times its own B A."""
    layer = adapted().blocks[0].attention.qkv
    change = (layer.merged() - base.blocks[0].attention.qkv.weight).split(layer.split_sizes)
    assert len(change) == 3
    first = 0
    for number, (part, rows) in enumerate(zip(change, layer.split_sizes, strict=True)):
        b, a = layer.lora_b[first : first + rows], layer.lora_a[3 * number : 3 * number + 3]
        torch.testing.assert_close(part, 2.0 * b @ a)
        first += rows


@pytest.mark.parametrize("targets", TARGETS)
def test_merged_weights_give_the_same_logits_without_adapters(base, adapted, tokens, targets):
    model = adapted(targets)
    plain = Transformer(base.config).eval()
    plain.load_state_dict(lora.merged_weights(model))  # the same names
    expected = model(tokens)
    torch.testing.assert_close(plain(tokens), expected, atol=1e-5, rtol=1e-5)
    assert (expected - base(tokens)).abs().max() > 0.1


def test_a_model_without_adapters_is_its_own_merged_one(base):
    assert adapter_matrices(base) == []
    torch.testing.assert_close(lora.merged_weights(base), base.state_dict(), rtol=0, atol=0)


# Training -----------------------------------------------------------------------------------------


def test_a_run_begins_as_the_model_it_adapts_to_the_bit(base, begun, tokens):
    run = begun()
    run.model.eval()
    assert torch.equal(run.model(tokens), base(tokens))
    torch.testing.assert_close(run.best, dict(base.state_dict()), rtol=0, atol=0)
    assert run.progress.best_epoch == 0
    for layer in adapted_layers(run.model).values():
        deviation = layer.lora_a.std().item() * layer.lora_a.size(1) ** 0.5
        assert 0.8 < deviation < 1.2 and not layer.lora_b.any()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_only_the_adapters_move_and_all_of_them(begun, optimizer):
    run = begun(optimizer=optimizer)
    before, still = run.model.state_dict(), frozen(run.model)
    before = {name: tensor.clone() for name, tensor in before.items()}
    first = run.progress.best_val_loss
    run_to_the_end(run)
    torch.testing.assert_close(frozen(run.model), still, rtol=0, atol=0)
    for name in adapter_names(run.model):
        assert not torch.equal(run.model.state_dict()[name], before[name]), name
    assert run.progress.best_val_loss < first
    held = {p for o in run.optimizers.all for g in o.param_groups for p in g["params"]}
    assert held == set(adapter_matrices(run.model))


def test_parameters_and_trained_parameters_are_counted_separately(begun, base):
    run = run_to_the_end(begun(lora_targets="attention", lora_rank=2))
    config = base.config
    rows = (config.heads + 2 * config.kv_heads) * config.head_size
    per_layer = 2 * (3 * config.width + rows) + 2 * (config.heads * config.head_size + config.width)
    assert run.num_parameters == base.parameter_count()
    assert run.num_trained == config.layers * per_layer


def test_what_is_kept_is_what_was_validated(begun, base, make_train_settings, machine):
    """The average of the adapters, merged."""
    run = run_to_the_end(begun(ema_decay=0.9))
    assert run.progress.best_epoch == run.settings.epochs
    kept = Transformer(base.config)
    kept.load_state_dict(run.best)
    other = Trainer(kept, run.data, make_train_settings(), machine)
    assert other.validator.loss() == pytest.approx(run.progress.best_val_loss, abs=1e-5)
    torch.testing.assert_close(
        {n: run.best[n] for n in run.best if "norm" in n or "embedding" in n},
        {n: t for n, t in base.state_dict().items() if "norm" in n or "embedding" in n},
    )
    assert run.validator.loss() != pytest.approx(run.progress.best_val_loss, abs=1e-5)


@pytest.mark.parametrize(("optimizer", "decay"), [("muon", 0.9), ("adamw", 0.0)])
def test_a_run_stopped_after_every_step_continues_to_the_same_result(
    begun, make_run, tmp_path, optimizer, decay
):
    fields = {"optimizer": optimizer, "ema_decay": decay, "epochs": 2}
    straight = run_to_the_end(begun(**fields))
    piece = begun(**fields)
    for _ in range(straight.total_steps):
        run_to_the_end(piece, steps=1)
        write_artifact(tmp_path / "state.pt", "training state", 1, piece.state_dict())
        piece = make_run(**fields)
        torch.manual_seed(12345)
        assert piece.restore(read_artifact(tmp_path / "state.pt", {"training state": 1})[1]) == ""
    for group in (
        lambda run: run.model.state_dict(),
        lambda run: run.best,
        lambda run: run.ema.averages,
        lambda run: run.optimizers.state_dict(),
    ):
        torch.testing.assert_close(group(straight), group(piece), rtol=0, atol=0)
    assert (
        straight.progress.best_val_loss == piece.progress.best_val_loss and piece.progress.finished
    )
