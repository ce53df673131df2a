"""Small models, vocabularies and settings that every test builds anew and offline."""

import shutil
from base64 import b64encode
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
import yaml
from hypothesis import settings as hypothesis_settings

from stages.lm.core import paths
from stages.lm.data.dataset import TokenData
from stages.lm.data.meta import SplitMeta, TokenizerMeta, TokensMeta
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import FAMILIES, ModelConfig
from stages.lm.model.initialization import init_weights
from stages.lm.model.runtime import Machine
from stages.lm.model.transformer import Transformer
from stages.lm.settings.train import TrainSettings
from stages.lm.text.tokenizer import train_bpe
from stages.sample_text import sample_text

ROOT = Path(__file__).parents[1]
TEXT = (
    "The quick brown fox jumps over the lazy dog; the dog, being lazy, didn't mind.\n"
    "Über den Wölfen schläft die Stille 12345 mal. 我们在这里学习语言模型。 🙂🙃\n\n"
    "\tHello   world!  It's 2024's model -- isn't it?\r\nHELLO Hello hello ...\n"
) * 12

# Without a deadline a busy machine fails no test; derandomized, the suite is the same every time.
hypothesis_settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis_settings.load_profile("suite")
# Products this small only wait for each other on several threads, above all on a busy machine.
torch.set_num_threads(1)


def pytest_configure(config):
    """One server of warm processes for all workers; it imports nothing before it is asked."""
    if not hasattr(config, "workerinput"):
        servers = ExitStack()
        servers.enter_context(warm.server())
        config.add_cleanup(servers.close)


@pytest.fixture(scope="session")
def text():
    """Prose in several scripts, long enough to learn merges from."""
    return TEXT


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level BPE with few merges: one character in several tokens is common."""
    return train_bpe(iter([TEXT]), 300, "gpt-2")


@pytest.fixture(scope="session")
def make_config():
    """A function from the fields that matter to a test to a tiny `ModelConfig`."""

    def make(arch="qwen3", **fields):
        defaults = {
            "vocab_size": 75,
            "context": 16,
            "layers": 2,
            "heads": 4,
            "kv_heads": 4,
            "head_size": 8,
            "width": 32,
            "ff_width": 48,
            "tie_embeddings": False,
            "dropout": 0.0,
            "norm_eps": FAMILIES[arch].norm_eps,
        }
        return ModelConfig(arch=arch, **defaults | fields)

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    """A function from config fields to a model whose every weight is random, norms included."""

    def make(arch="qwen3", seed=0, **fields):
        model = Transformer(make_config(arch, **fields))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
                parameter.normal_(mean, 0.2, generator=generator)
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def checkpoint(make_model, tokenizer):
    """A whole checkpoint of random weights over the tiny vocabulary."""
    model = make_model(vocab_size=tokenizer.vocab_size, kv_heads=2)
    return Checkpoint(
        config=model.config,
        tensors=model.state_dict(),
        tokenizer=TokenizerMeta(tokenizer.name, tokenizer.pattern).stored(tokenizer.to_text()),
        provenance={"metrics": {"best_val_loss": 1.5}, "train": {"lr": 1e-3, "seed": 1337}},
    )


@pytest.fixture(scope="session")
def machine():
    """The CPU in float32."""
    return Machine(torch.device("cpu"), "float32", torch.get_num_threads())


@pytest.fixture(scope="session")
def make_train_settings():
    """A function from the fields that matter to a test to `TrainSettings`."""

    def make(**fields):
        defaults = {
            "seed": 3,
            "epochs": 3,
            "batch_size": 4,
            "accumulate": 1,
            "adapt": "full",
            "lora_rank": 4,
            "lora_alpha": 8.0,
            "lora_targets": "all",
            "optimizer": "muon",
            "lr": 0.01,
            "embedding_lr": 0.01,
            "head_lr": 0.01,
            "warmup_steps": 2,
            "decay_fraction": 0.5,
            "final_lr_fraction": 0.1,
            "weight_decay": 0.1,
            "momentum": 0.95,
            "beta1": 0.9,
            "beta2": 0.95,
            "grad_clip": 1.0,
            "share_spellings": False,
            "ema_decay": 0.0,
            "calibrate": False,
            "split_tokens": 0.0,
            "patience": 0,
            "val_tokens": 1_000_000,
            "precision": "float32",
            "compile": "off",
        }
        return TrainSettings(**defaults | fields)

    return make


@pytest.fixture(scope="session")
def data():
    """A text that repeats itself with noise: there is something to learn in few steps."""
    random = np.random.Generator(np.random.Philox(1))
    tokens = np.tile(np.arange(30, dtype="<u2"), 40)
    noise = random.random(len(tokens)) < 0.1
    tokens[noise] = random.integers(0, 75, noise.sum())
    train, val, test = np.split(tokens, [800, 1000])
    splits = {"val": SplitMeta(len(val), 3 * len(val), "")}
    meta = TokensMeta(75, TokenizerMeta("bpe", ""), splits, "", "")
    merges = np.arange(75).repeat(2).reshape(75, 2)
    merges[60:] = np.arange(30).reshape(15, 2)
    letters = b"abcdefghijklm"
    spelt = [space + bytes([each]) for each in letters + letters.upper() for space in (b"", b" ")]
    tokens = [*spelt, *(b"%d" % each for each in range(75 - len(spelt)))]
    vocabulary = "".join(f"{b64encode(each).decode()} {n}\n" for n, each in enumerate(tokens))
    return TokenData(train, val, test, merges, meta, vocabulary)


@pytest.fixture(scope="session")
def initialised_model(make_config):
    """A function from config fields to a model as training begins with it."""

    def make(arch="qwen3", seed=0, **fields):
        model = Transformer(make_config(arch, **fields))
        init_weights(model, torch.Generator().manual_seed(seed))
        return model

    return make


@pytest.fixture(scope="session")
def sample():
    """The embedded sample, which takes seconds to make."""
    return sample_text().encode("utf-8")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A folder in the place of the project's data and metrics; its `data/input/` is empty."""
    folders = {
        "DATA": "data",
        "INPUT": "data/input",
        "BASE": "data/base",
        "TOKENS": "models/tokens",
    }
    for name, folder in folders.items():
        monkeypatch.setattr(paths, name, tmp_path / folder)
    monkeypatch.setattr(paths, "CORPUS_METRICS", tmp_path / "corpus.json")
    paths.INPUT.mkdir(parents=True)
    paths.BASE.mkdir()
    return tmp_path


@pytest.fixture
def params(tmp_path):
    """A copy of `params.yaml` and a function that changes it: key path -> value, None removes."""
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)

    def change(section, key, value):
        document = yaml.safe_load(path.read_text("utf-8"))
        if value is None:
            del document[section][key]
        else:
            document.setdefault(section, {})[key] = value
        path.write_text(yaml.safe_dump(document), "utf-8")
        return path

    return path, change
