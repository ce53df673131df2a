"""Adapters that are exported apart add to the base what the checkpoint has more."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from stages import export
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.export.adapter import factors, write_adapter
from stages.lm.export.huggingface import write_huggingface
from stages.lm.inference.loading import LoadedModel
from stages.lm.model.checkpoint import build_model
from stages.lm.model.transformer import Transformer
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.training.lora import adapter_matrices, add_adapters, merged_weights

SHAPES = {
    "llama": {"arch": "llama", "kv_heads": 2, "tie_embeddings": True},
    "gemma3": {"arch": "gemma3", "layers": 6, "sliding_window": 5, "tie_embeddings": True},
    "gpt2": {"arch": "gpt2", "tie_embeddings": True},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """`data/base/`, elsewhere."""
    monkeypatch.setattr(paths, "BASE", tmp_path / "base")
    return paths.BASE


@pytest.fixture
def adapted(make_model, tokenizer, folder):
    """A function from a shape to a model trained with adapters on `data/base/theirs/`."""

    def make(shape="llama", targets="all", rank=3):
        model = make_model(**SHAPES[shape] | {"vocab_size": tokenizer.vocab_size})
        (folder / "theirs").mkdir(parents=True)
        write_huggingface(
            LoadedModel(model.config, lambda: model, tokenizer, "float32", {}, 0), folder / "theirs"
        )
        base = PretrainedModel.open("theirs")
        trained = Transformer(model.config)
        trained.load_state_dict(base.state_dict(model.config))
        add_adapters(trained, targets, rank, 2.0 * rank)
        for matrix in adapter_matrices(trained):
            matrix.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(matrix.size(0)))
        result = build_model(model.config, merged_weights(trained))
        provenance = {"init_from": "theirs", "base_sha256": base.digest()}
        provenance["train"] = {"adapt": "lora", "lora_rank": rank}
        return LoadedModel(model.config, lambda: result, tokenizer, "float32", provenance, 0)

    return make


def logits(model, tokens):
    with torch.inference_mode():
        found = model(tokens)
    return getattr(found, "logits", found)


TOKENS = torch.arange(30).view(2, 15)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_what_is_exported_is_read_as_what_was_trained(adapted, folder, shape, targets):
    loaded = adapted(shape, targets)
    (folder / "again").mkdir()
    write_adapter(loaded, folder / "again")
    base = PretrainedModel.open("again")
    model = build_model(base.config, base.state_dict(base.config))
    assert (
        base.adapter and (logits(model, TOKENS) - logits(loaded.model, TOKENS)).abs().max() < 1e-5
    )
    tensors = load_file(folder / "again" / "adapter_model.safetensors")
    assert {min(each.shape) for each in tensors.values()} == {9 if shape == "gpt2" else 3}


@pytest.mark.parametrize("shape", SHAPES)
def test_peft_gives_the_logits_of_the_checkpoint(adapted, folder, shape):
    peft, transformers = map(pytest.importorskip, ("peft", "transformers"))
    loaded = adapted(shape)
    for parameter in loaded.model.final_norm.parameters():
        parameter.mul_(1.2)  # as `train.calibrate` does
    (folder / "again").mkdir()
    write_adapter(loaded, folder / "again")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "theirs")
    theirs = peft.PeftModel.from_pretrained(theirs, folder / "again")
    assert (logits(theirs, TOKENS) - logits(loaded.model, TOKENS)).abs().max() < 1e-4
    merged = theirs.merge_and_unload()
    assert (logits(merged, TOKENS) - logits(loaded.model, TOKENS)).abs().max() < 1e-4


@pytest.mark.parametrize("rank", [1, 4, 9])
def test_factors_of_any_rank_have_the_product(rank):
    generator = torch.Generator().manual_seed(1)
    b, a = torch.randn(7, 4, generator=generator), torch.randn(4, 5, generator=generator)
    matrix = (b[:, :rank] @ a[:rank]).double()
    found_a, found_b = factors(matrix, rank)
    assert (found_a.shape, found_b.shape) == ((rank, 5), (7, rank))
    assert torch.allclose(found_b @ found_a, matrix)


def test_the_command_writes_them_into_a_folder_of_their_own(adapted, tmp_path, monkeypatch, capsys):
    loaded = adapted()
    monkeypatch.setattr(export, "load_model", lambda path: loaded)
    export.main([str(tmp_path / "out"), "--format", "adapter"])
    files = {file.name for file in (tmp_path / "out" / "adapter").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    assert "adapter_model.safetensors" in capsys.readouterr().out
    told = json.loads((tmp_path / "out" / "adapter" / "adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["r"], told["lora_alpha"]) == ("theirs", 3, 3)
    assert "self_attn.q_proj" in told["target_modules"] and told["modules_to_save"] is None


REFUSED = {
    "trained as a whole": ({"train": {"adapt": "full", "lora_rank": 3}}, "no adapters to keep"),
    "nothing recorded": ({"train": None}, "no adapters to keep"),
    "base gone": ({"init_from": "gone"}, "gone is missing"),
    "other base": ({"base_sha256": "0" * 64}, "does not hold the plain weights"),
    "more than they": (
        {"train": {"adapt": "lora", "lora_rank": 2}},
        "more than adapters of rank 2",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_told_apart_is_refused(case, adapted, tmp_path):
    change, words = REFUSED[case]
    loaded = adapted()
    loaded = replace(loaded, provenance=loaded.provenance | change)
    with pytest.raises(UserError, match=words) as caught:
        write_adapter(loaded, tmp_path)
    assert "format huggingface" in str(caught.value)


def test_weights_that_training_did_not_better_have_no_adapters(adapted, tmp_path):
    loaded = adapted()
    base = PretrainedModel.open("theirs")
    model = build_model(loaded.config, base.state_dict(loaded.config))
    with pytest.raises(UserError, match=r"best epoch is .* itself"):
        write_adapter(replace(loaded, build=lambda: model), tmp_path)


def test_a_quantized_model_has_no_adapters(adapted, tmp_path):
    with pytest.raises(UserError, match="no adapters to keep"):
        write_adapter(replace(adapted(), scheme="int8"), tmp_path)
