"""What a GPU computes is what a CPU does: losses, a resumed run, records, adapters, texts."""

import copy

import numpy as np
import pytest
import torch

from stages.lm.inference.generation import SamplingSettings, generate_text
from stages.lm.inference.loading import load_model
from stages.lm.model.runtime import Machine
from stages.lm.training.trainer import Trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def make_run(initialised_model, make_train_settings, data):
    """A function to a run of ten steps and more, on a device."""

    def make(device, arch="qwen3", **fields):
        settings = make_train_settings(**{"accumulate": 2, "compile": "off", "epochs": 4} | fields)
        torch.manual_seed(settings.seed)
        machine = Machine(torch.device(device), settings.precision, 1)
        run = Trainer(initialised_model(arch), data, settings, machine)
        run.initialize("random")
        return run

    return make


def losses(run):
    """Training losses at every point of the curve, and the validation losses."""
    run.fit(lambda: None, lambda: False)
    return [value for row in run.progress.curve for key, value in row.items() if "loss" in key]


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_run_on_a_gpu_learns_what_one_on_a_cpu_does(make_run, arch, compiled, accumulate):
    expected = losses(make_run("cpu", arch, accumulate=accumulate, ema_decay=0.9))
    run = make_run("cuda", arch, accumulate=accumulate, ema_decay=0.9, compile=compiled)
    assert run.compiled == (compiled == "on")
    np.testing.assert_allclose(losses(run), expected, rtol=0.01)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_run_in_bf16_stays_near_one_in_float32(make_run, compiled):
    expected = losses(make_run("cuda"))
    actual = losses(make_run("cuda", precision="bf16", compile=compiled))
    np.testing.assert_allclose(actual, expected, rtol=0.05)


def test_adapters_train_on_a_gpu(make_run):
    expected = losses(make_run("cpu", adapt="lora", lr=0.01))
    np.testing.assert_allclose(losses(make_run("cuda", adapt="lora", lr=0.01)), expected, rtol=0.01)


@pytest.mark.parametrize("compiled", ["off", "on"])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(make_run, compiled):
    whole = losses(make_run("cuda", compile=compiled))
    first = make_run("cuda", compile=compiled)
    first.run(lambda: None, lambda: first.progress.step == 7)
    state = copy.deepcopy(first.state_dict())
    second = make_run("cuda", compile=compiled)
    second.restore(state)
    np.testing.assert_allclose(losses(second), whole, rtol=1e-3)


def test_greedy_texts_are_the_cpu_s(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    greedy = SamplingSettings(temperature=0)
    on_cpu, on_gpu = (load_model(path, device) for device in ("cpu", "cuda"))
    expected = generate_text(on_cpu, "ab", 20, greedy, seed=1)
    assert generate_text(on_gpu, "ab", 20, greedy, seed=1) == expected
