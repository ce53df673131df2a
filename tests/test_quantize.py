"""The stage takes the smallest scheme that loses little enough, and says what it tried."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokens_on_disk import write_split

from stages import quantize
from stages.lm.core import paths
from stages.lm.data.dataset import write_meta
from stages.lm.data.meta import TokenizerMeta
from stages.lm.data.splits import SPLITS
from stages.lm.inference.loading import load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.runtime import RuntimeSettings
from stages.quantize import RATES, Tried, relative_increase, search


def ladder(lowest):
    """A run of schemes of which those at `lowest` bits or more lose nothing."""

    def run(scheme):
        bits = {"f16": 16.0, "int8": 8.0, "int4": 4.5}.get(scheme) or float(scheme[4:])
        return Tried(scheme, int(100 * bits), bits, 1.0, 0.0 if bits >= lowest else 0.1)

    return run


@pytest.mark.parametrize("lowest", [*RATES, 0.5, 4.25, 8, 20])
def test_the_lowest_rate_that_fits_is_found_in_few_tries(lowest):
    tried = search(ladder(lowest), 0.005)
    assert len(tried) <= 3 + 5
    fitting = [one.bits_per_weight for one in tried if not one.increase]
    possible = [bits for bits in (*RATES, 4.5, 8, 16) if bits >= lowest]
    assert min(fitting, default=None) == min(possible, default=None)


@pytest.fixture
def stage(tmp_path, monkeypatch, make_model, tokenizer):
    """Runs the stage on a small model and random tokens: settings -> metrics."""
    names = ("CHECKPOINT", "QUANTIZED", "QUANTIZE_METRICS", "TOKENS")
    for name in names:
        monkeypatch.setattr(paths, name, tmp_path / getattr(paths, name).name)
    model = make_model(vocab_size=tokenizer.vocab_size, kv_heads=2, width=64, ff_width=64)
    parts = TokenizerMeta(tokenizer.name, tokenizer.pattern).stored(tokenizer.to_text())
    weights = dict(model.state_dict())
    Checkpoint(model.config, weights, parts, {}).save(paths.CHECKPOINT)
    splits = {}
    for split, size in zip(SPLITS, (700, 150, 90), strict=True):
        ids = np.random.default_rng(size).integers(0, tokenizer.vocab_size, size).tolist()
        splits[split] = write_split(paths.TOKENS, split, [ids], 256, 3 * size)
    write_meta(
        paths.TOKENS,
        TokenizerMeta("bpe", tokenizer.pattern),
        tokenizer.to_text(),
        tokenizer.merges(),
        splits,
    )

    def run(scheme, max_increase=0.005):
        sections = {
            QuantizeSettings: QuantizeSettings(scheme=scheme, max_increase=max_increase),
            RuntimeSettings: RuntimeSettings(device="cpu", threads=1, checkpoint_steps=0),
        }
        monkeypatch.setattr(quantize, "load_section", sections.get)
        quantize.main()
        return json.loads(paths.QUANTIZE_METRICS.read_text("utf-8"))

    return run


@pytest.mark.parametrize(
    ("after", "before", "share"), [(2.2, 2.0, 0.1), (0.0002, 0.0001, 0.001), (0.01, 0.0, 0.1)]
)
def test_the_increase_of_a_tiny_loss_is_relative_to_a_floor(after, before, share):
    assert relative_increase(after, before) == pytest.approx(share)


def test_auto_writes_the_smallest_it_tried_that_fits(stage, capsys):
    figures = stage("auto", 0.02)
    fitting = [one for one in figures["tried"] if one["increase"] <= 0.02]
    assert figures["scheme"] == min(fitting, key=lambda one: one["bytes"])["scheme"]
    assert {"f16", "int8", "int4"} < {one["scheme"] for one in figures["tried"]}
    assert figures["file_bytes"] == paths.QUANTIZED.stat().st_size
    assert figures["checkpoint_bytes"] == paths.CHECKPOINT.stat().st_size
    loaded = load_model(paths.QUANTIZED)
    assert loaded.scheme == figures["scheme"]
    printed = capsys.readouterr().out
    assert all(one["scheme"] in printed for one in figures["tried"]) and "WARNING" not in printed


def test_a_scheme_that_fits_on_the_sample_only_gives_way_to_the_next_smallest(stage, monkeypatch):
    on_all_of_val = iter([1.0, 1.03, 1.01])  # the float model, and the smallest schemes

    def loss(model, data, machine, max_tokens=None):
        return 1.0 if max_tokens else next(on_all_of_val)

    monkeypatch.setattr(quantize, "val_bits_per_byte", loss)
    figures = stage("auto", 0.02)
    sizes = {one["scheme"]: one["bytes"] for one in figures["tried"]}
    assert figures["scheme"] == sorted(sizes, key=sizes.__getitem__)[1]
    assert figures["val_bits_per_byte"] == 1.01


def test_where_nothing_fits_auto_writes_float16_and_says_so(stage, monkeypatch, capsys):
    real = quantize.val_bits_per_byte
    calls = []

    def worse_each_time(*arguments):
        calls.append(arguments)
        return real(*arguments) + len(calls)

    monkeypatch.setattr(quantize, "val_bits_per_byte", worse_each_time)
    assert stage("auto", 0.0)["scheme"] == "f16"
    assert "WARNING: quantize.scheme f16 loses more than" in capsys.readouterr().out


def test_a_scheme_that_is_named_is_written_whatever_it_loses(stage, capsys):
    figures = stage("gptq2", 0.0)
    assert figures["scheme"] == load_model(paths.QUANTIZED).scheme == "gptq2"
    assert [one["scheme"] for one in figures["tried"]] == ["gptq2"]
    assert figures["delta_bits_per_byte"] > 0
    assert "WARNING: quantize.scheme gptq2 loses more than" in capsys.readouterr().out


@pytest.mark.parametrize("scheme", ["gptq3", "int4"])
def test_the_same_model_is_the_same_file(stage, scheme):
    files = []
    for _ in range(2):
        stage(scheme)
        files.append(paths.QUANTIZED.read_bytes())
        paths.QUANTIZED.unlink()
    assert files[0] == files[1]


def test_a_text_shorter_than_a_window_calibrates_too(stage):
    checkpoint = Checkpoint.load(paths.CHECKPOINT)
    data = quantize.TokenData.load(paths.TOKENS)
    known = quantize.calibration(checkpoint, replace(data, train=data.train[:7]))
    assert all(value.isfinite().all() for value in known.gradients.values())
    assert torch.equal(known.inputs["head.weight"], known.inputs["head.weight"].T)
