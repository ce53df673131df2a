"""Choice of device, precision and threads; random generators are restored."""

import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from stages.lm.core.errors import UserError
from stages.lm.model.runtime import (
    Machine,
    can_compile,
    pick_machine,
    random_state,
    restore_random_state,
)
from stages.lm.settings.runtime import RuntimeSettings

RUNTIME = RuntimeSettings(device="cpu", threads=0, checkpoint_steps=0)


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(False, False, "cpu"), (False, True, "mps"), (True, False, "cuda"), (True, True, "cuda")],
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_machine(replace(RUNTIME, device="auto")).device.type == device


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_missing_device_is_a_user_error(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"runtime\.device is '{device}'.*set it to auto"):
        pick_machine(replace(RUNTIME, device=device))


def test_the_threads_are_those_asked_for_and_zero_leaves_them():
    assert pick_machine(replace(RUNTIME, threads=2)).threads == torch.get_num_threads() == 2
    assert pick_machine(RUNTIME).threads == torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("avx512", "amx", "precision"),
    [
        (False, False, "float32"),
        (True, False, "bf16"),
        (False, True, "bf16"),
    ],
)
def test_auto_takes_bf16_where_the_cpu_multiplies_it(monkeypatch, avx512, amx, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert pick_machine(RUNTIME, "auto").precision == precision
    assert pick_machine(RUNTIME, "float32").precision == "float32"
    assert pick_machine(RUNTIME, "bf16").precision == "bf16"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)]
)
def test_products_have_the_precision_asked_for(precision, dtype):
    with Machine(torch.device("cpu"), precision, 1).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("no C++ compiler\n  a stack\n  of lines"), "no C++ compiler"),
        (OSError("\n disk full \n"), "disk full"),
        (AssertionError(), "AssertionError"),
    ],
    ids=repr,
)
def test_why_nothing_can_be_compiled_is_one_line(monkeypatch, capsys, error, told):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", fails)
    assert not can_compile(torch.device("cpu"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("training without torch.compile") and line.endswith(": " + told)


def test_the_description_is_plain_values():
    described = Machine(torch.device("cpu"), "bf16", 3).describe()
    assert {type(value) for value in described.values()} == {str, int}
    assert described["torch"] == torch.__version__ and described["threads"] == 3


def test_a_restored_random_state_draws_the_same_numbers():
    device = torch.device("cpu")
    state = random_state(device)
    first = torch.rand(5)
    restore_random_state(state, device)
    assert torch.equal(torch.rand(5), first)


def test_the_state_of_another_machines_generators_is_left_alone():
    state = random_state(torch.device("cpu")) | {"cuda": torch.zeros(3), "mps": torch.zeros(3)}
    restore_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state["cpu"])


FAULTS = """
import resource
import torch
from stages.lm.model.runtime import pick_machine
from stages.lm.settings.runtime import RuntimeSettings

pick_machine(RuntimeSettings(device="cpu", threads=1, checkpoint_steps=0))
for step in range(20):
    if step == 10:  # the first ones have to fetch their memory
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc's allocator")
@pytest.mark.slow
def test_freed_memory_is_used_again_without_being_fetched_again():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 4 << 24  # the bytes of a single one of its tensors
