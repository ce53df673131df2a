"""Benchmarks that no other test runs still fit the code they measure."""

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).with_name("benchmarks")


@pytest.mark.parametrize(
    "name",
    ["conversation", "llamacpp", "nanogpt", "pretrained", "quantizers", "throughput", "tokenizing"],
)
def test_a_benchmark_loads(name):
    assert "main" in runpy.run_path(str(FOLDER / f"{name}.py"), run_name=name)
