"""Sizes and names that a file or a setting claims are refused before anything is made of them."""

import json
import resource
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stages import export
from stages.corpus import check_other_text, check_vocabulary
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.inference.loading import load_model
from stages.lm.pretrained.files import INDEX, WEIGHTS, find_base, weight_files
from stages.lm.pretrained.hf_weights import huggingface_tensors
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.settings.init_from import load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.tokenize import TokenizeSettings
from stages.tokenize_text import make_tokenizer

SHAPES = {
    "qwen3": {
        **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16},
        "vocab_size": 75,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, "vocab_size": 75},
}
NUMBERS = [2**30, 2**31 - 1, 2**31, 2**63, 2**70, 10**400, 0, -1, 1.5, True, "2", [2], {}, None]


@pytest.fixture(autouse=True)
def little_memory():
    """No more than 500 MB beyond what is in use."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (500 << 20), limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def write_config(folder, arch, changes):
    document = SHAPES[arch] | {"model_type": arch, "tie_word_embeddings": True} | changes
    (folder / "config.json").write_text(json.dumps(document))


@pytest.fixture
def base(tmp_path, monkeypatch, initialised_model):
    """A function from an architecture to the folder of a model to start from."""
    monkeypatch.setattr(paths, "BASE", tmp_path)

    def make(arch):
        folder = tmp_path / "theirs"
        folder.mkdir()
        write_config(folder, arch, {})
        widths = {"kv_heads": 2} if arch == "qwen3" else {"ff_width": 128}
        model = initialised_model(arch, tie_embeddings=True, **widths)
        weights = huggingface_tensors(model.config, model.state_dict())
        save_file({name: each.contiguous() for name, each in weights.items()}, folder / WEIGHTS)
        return folder

    return make


def opened():
    found = PretrainedModel.open("theirs")
    found.state_dict(found.config_for(70, min(found.config.context, 4096), 0.0))


CASES = [
    *((arch, {key: value}) for arch, shape in SHAPES.items() for key in shape for value in NUMBERS),
    ("gpt2", {"n_inner": 2**30}),
    ("gpt2", {"n_inner": -1}),
    ("qwen3", {"num_hidden_layers": 2**31 - 1, "layer_types": ["full_attention"] * 2}),
    ("qwen3", {"num_hidden_layers": 2**31 - 1, "layer_types": []}),
    ("qwen3", {"layer_types": 5}),
    ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("qwen3", {"rope_theta": 10**400}),
    ("qwen3", {"rope_theta": float("nan")}),
    ("qwen3", {"rope_parameters": [1]}),
    ("qwen3", {"rope_scaling": {"rope_type": [1]}}),
    ("qwen3", {"rms_norm_eps": {}}),
    ("gpt2", {"tie_word_embeddings": 1}),
    ("gpt2", {"model_type": []}),
    ("gpt2", {"model_type": "x" * 5000}),
]


@pytest.mark.parametrize("arch", SHAPES)
def test_a_config_that_lies_is_refused_before_anything_is_made_of_it(arch, base):
    folder = base(arch)
    opened()
    for changes in [changes for kind, changes in CASES if kind == arch]:
        write_config(folder, arch, changes)
        with pytest.raises(UserError, match="theirs"):
            opened()


def test_weights_larger_than_their_file_are_refused_when_the_model_is_opened(base):
    write_config(base("qwen3"), "qwen3", {"intermediate_size": 2**20})
    with pytest.raises(UserError, match="do not fit into files of"):
        PretrainedModel.open("theirs")


# Names longer than any file's --------------------------------------------------------------------

LONG = "x" * 300


def read_init_from(folder):
    (folder / "params.yaml").write_text(f"init_from: {LONG}\n")
    load_init_from(folder / "params.yaml")


def read_index(folder, name):
    (folder / WEIGHTS).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": {"wte": name}}))
    weight_files(folder)


def tokenize_settings(name):
    return load_section(TokenizeSettings, auto={"tokenize.tokenizer": name})


def write_named_tensor(folder, write):
    write(folder)
    PretrainedModel.open("theirs").state_dict(PretrainedModel.open("theirs").config)


def safetensors_of(folder):
    save_file({LONG: torch.zeros(50_000)}, folder / WEIGHTS)


def checkpoint_of(checkpoint, folder):
    replace(checkpoint, tensors=checkpoint.tensors | {LONG: torch.zeros(1)}).save(folder / "x.pt")
    load_model(folder / "x.pt")


@pytest.mark.parametrize(
    "use",
    {
        "init_from": lambda folder, _: read_init_from(folder),
        "download": lambda folder, _: find_base("a/" + "x" * 95),
        "tokenizer": lambda *_: check_vocabulary(f"{LONG}.tiktoken"),
        "named tokenizer": lambda *_: tokenize_settings(LONG),
        "tokenize": lambda *_: make_tokenizer(tokenize_settings(f"{LONG}.tiktoken"), None),
        "also": lambda *_: check_other_text(LONG),
        "--model": lambda *_: load_model(Path(LONG)),
        "a folder of --model": lambda *_: load_model(Path(LONG, "model.pt")),
        "export": lambda *_: export.main([LONG]),
        "a shard": lambda folder, _: read_index(folder, f"{LONG}.safetensors"),
        "a shard that is missing": lambda folder, _: read_index(
            folder, LONG[:200] + ".safetensors"
        ),
        "a tensor": lambda folder, _: write_named_tensor(folder, safetensors_of),
        "a weight": lambda folder, checkpoint: checkpoint_of(checkpoint, folder),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_name_that_no_file_can_have_ends_in_a_sentence(base, checkpoint, use):
    folder = base("gpt2")
    with pytest.raises(UserError):
        use[1](folder, checkpoint)
