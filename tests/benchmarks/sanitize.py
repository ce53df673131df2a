"""The C engine under the compiler's sanitizers: its tests, and model files that lie.

    PYTHONPATH=. python tests/benchmarks/sanitize.py     # all of it; about ten minutes on one core
    PYTHONPATH=. python tests/benchmarks/sanitize.py --mutated 200

The engine is compiled with gcc's `-fsanitize=address,undefined`, and its packed weights lie in
memory whose ends are watched. With that the tests of the engine and of packing run, and quantized
models are read whose values, numbers, packed stream or shape were changed and whose digest is right
again, so that it stops none of them. Held is a sentence (`UserError`), or tokens that were written,
with the name of what computed them. A report of a sanitizer, another exception, and more than
a minute or 4 GB are failures.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import GIANTS, KINDS, ODD, REMOVED, mutate_bytes, paths_in, write_changed
from isolation import held, run_isolated

from stages.lm.core.artifact import read_artifact, write_artifact
from stages.lm.core.errors import UserError
from stages.lm.data.meta import TokenizerMeta
from stages.lm.inference import engine, native
from stages.lm.inference.decoder import make_decoder
from stages.lm.inference.generation import SamplingSettings, generate_text
from stages.lm.inference.loading import load_model
from stages.lm.model.config import ModelConfig
from stages.lm.quantization.quantized_model import QuantizedModel, shapes_of
from stages.lm.quantization.schemes import GROUP_SIZE, QuantizedWeight, StoredWeight
from stages.lm.text.interface import Tokenizer
from stages.lm.text.tokenizer import train_bpe

ROOT = Path(__file__).parents[2]
TESTS = ["tests/test_engine.py", "tests/test_rans.py", "tests/test_quantized_model.py"]
KIND = "quantized model"


def in_sanitized_process(task: list[str], folder: Path) -> None:
    """Run this script with other arguments, and with an engine that the sanitizers watch.

    Raises:
        SystemExit: something failed; a sanitizer that reports something ends the process.
    """
    gcc = shutil.which("gcc")
    if gcc is None:
        raise SystemExit("gcc is not installed")
    wrapper = folder / "cc"
    checks = "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
    wrapper.write_text(f'#!/bin/sh\nunset LD_PRELOAD\nexec {gcc} "$@" {checks}\n')
    wrapper.chmod(0o700)
    # The sanitizer has to be loaded before all else, with the library whose exceptions it watches.
    find = [gcc, "-print-file-name=libasan.so"], [gcc, "-print-file-name=libstdc++.so.6"]
    preload = [subprocess.run(each, capture_output=True, text=True).stdout.strip() for each in find]
    sanitizers = "exitcode=99:detect_leaks=0:print_stacktrace=1"
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "LD_PRELOAD": " ".join(preload),
        "ASAN_OPTIONS": sanitizers,
        "UBSAN_OPTIONS": sanitizers,
        "XDG_CACHE_HOME": str(folder),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    done = subprocess.run([sys.executable, __file__, *task], env=environment, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{task[-1]}: exit code {done.returncode}")


class WatchedPages:
    """In place of large pages, which have no watched ends: memory of its own for each matrix."""

    def __init__(self, count: int) -> None:
        self.left = count

    def tensor_split(self, sizes: list[int]) -> tuple[torch.Tensor, "WatchedPages"]:
        """Memory of the first size, and the rest."""
        assert sizes[0] <= self.left
        return torch.empty(sizes[0], dtype=torch.uint8), WatchedPages(self.left - sizes[0])


# Models -------------------------------------------------------------------------------------------


def small_tokenizer() -> Tokenizer:
    """A vocabulary that is no multiple of anything."""
    text = "Some text with a few merges, so that the vocabulary is more than bytes. " * 4
    return train_bpe(iter([text]), 271, "gpt-2")


def some_config(draw: random.Random, vocab_size: int) -> ModelConfig:
    """A shape that mostly suits the engine, now and then one that does not."""
    odd = [8, 32, 48, 96] if draw.random() < 0.1 else []
    heads, head_size = draw.choice([(1, 64), (2, 32), (3, 64), (4, 16), (4, 48), (4, 80), (6, 128)])
    return ModelConfig(
        arch=draw.choice(["qwen3", "gpt2"]),
        vocab_size=vocab_size,
        context=draw.choice([2, 3, 7, 16, 17, 31, 64, 65, 129, 300]),
        layers=draw.choice([1, 1, 2, 3]),
        heads=heads,
        kv_heads=draw.choice([each for each in range(1, heads + 1) if heads % each == 0]),
        head_size=draw.choice(odd or [head_size]),
        width=draw.choice(odd or [64, 64, 128, 192, 256]),
        ff_width=draw.choice(odd or [64, 128, 192, 320]),
        tie_embeddings=draw.random() < 0.5,
        dropout=0.0,
        rope_base=draw.choice([1.0, 10_000.0, 1e9]),
    )


def some_weights(
    shapes: dict[str, torch.Size], draw: random.Random, plain: float
) -> dict[str, StoredWeight]:
    """Random weights of these shapes; a share of about `plain` of the matrices has no codes."""
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    top = draw.choice([7, 127])

    def weight(shape: torch.Size) -> StoredWeight:
        if len(shape) == 1 or draw.random() < plain:
            return (torch.randn(shape, generator=generator) / 8).half()
        rows, columns = shape
        grouped = columns % GROUP_SIZE == 0 and draw.random() < 0.5
        codes = torch.randint(-top - 1, top + 1, shape, generator=generator, dtype=torch.int8)
        scales = torch.rand(rows, columns // GROUP_SIZE if grouped else 1, generator=generator)
        return QuantizedWeight(codes, (scales / 4 / top).half())

    return {name: weight(shape) for name, shape in shapes.items()}


def some_model(draw: random.Random, tokenizer: Tokenizer, plain: float = 0.02) -> QuantizedModel:
    """A quantized model of a random shape with random weights."""
    config = some_config(draw, tokenizer.vocab_size)
    weights = some_weights(shapes_of(config, 1 << 20), draw, plain)
    parts = TokenizerMeta("bpe", tokenizer.pattern).stored(tokenizer.to_text())
    return QuantizedModel(config, "int8", weights, parts, {"train": {"lr": 0.01}}, {"loss": 1.5})


# Mutations ----------------------------------------------------------------------------------------

SIZES = [0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 128, 256, 271, 272, 4096, 1 << 16, (1 << 31) - 1]
NUMBERS = [0.0, -0.0, 1e-7, -1e-7, 65504.0, -65504.0, float("inf"), float("-inf"), float("nan")]


def with_changed_value(path: Path, draw: random.Random, honest: QuantizedModel) -> None:
    """Write a model with some other values in its file: settings, sizes, names, parts."""
    honest.save(path)
    for _ in range(draw.choice([1, 1, 2, 3])):
        _, content = read_artifact(path, KINDS)
        place = draw.choice(list(paths_in(content)))
        near = [content["config"].get(place[-1], 1) if place[0] == "config" else 1]
        near = [value + step for value in near if type(value) is int for step in (-1, 1)]
        value = draw.choice([draw.choice(SIZES + near), draw.choice([*GIANTS, *ODD, REMOVED])])
        write_changed(path, KIND, content, place, value)


def with_changed_stream(path: Path, draw: random.Random, honest: QuantizedModel) -> None:
    """Write a model whose packed stream has a few other bytes."""
    honest.save(path)
    _, content = read_artifact(path, KINDS)
    stream = content["packed"].numpy().tobytes()
    # The tables of frequencies and the states come first.
    places = list(range(min(len(stream), 4000))) if draw.random() < 0.5 else None
    changed = bytearray(mutate_bytes(stream, draw, places) or b"x")
    packed = torch.frombuffer(changed, dtype=torch.uint8)
    write_artifact(path, KIND, KINDS[KIND], content | {"packed": packed})


def with_changed_numbers(path: Path, draw: random.Random, honest: QuantizedModel) -> None:
    """Write a model with other codes, scales and values, packed anew."""
    weights = dict(honest.tensors)

    def changed(numbers: torch.Tensor, choices: list[Any]) -> torch.Tensor:
        numbers = numbers.clone()
        flat, count = numbers.view(-1), draw.choice([1, 3, numbers.numel()])
        for _ in range(min(count, 50)):
            flat[draw.randrange(len(flat))] = draw.choice(choices)
        return torch.full_like(numbers, draw.choice(choices)) if count > 3 else numbers

    # Numbers that are not finite are refused, so most changes are of others.
    numbers = NUMBERS if draw.random() < 0.3 else NUMBERS[:6]
    for name in draw.choices(list(weights), k=draw.choice([1, 2, 6, 20])):
        weight = weights[name]
        if isinstance(weight, QuantizedWeight):
            codes = changed(weight.codes, [-128, -127, -9, -8, 0, 7, 8, 127])
            scales = changed(weight.scales, numbers) if draw.random() < 0.5 else weight.scales
            weights[name] = QuantizedWeight(codes, scales)
        else:
            weights[name] = changed(weight, numbers)
    replace(honest, tensors=weights).save(path)


def with_changed_sizes(path: Path, draw: random.Random, honest: QuantizedModel) -> None:
    """Write a model whose configuration is another one, of nearly or exactly as many numbers."""
    honest.save(path)
    _, content = read_artifact(path, KINDS)
    config = content["config"]
    names = [name for name, value in config.items() if type(value) is int]
    for name in draw.sample(names, draw.choice([1, 2, 2])):
        factor = draw.choice([0.5, 2, 3, 1 / 3])
        config[name] = max(1, int(config[name] * factor)) + draw.choice([0, 0, 0, 1, -1])
    if draw.random() < 0.3:
        config["heads"], config["head_size"] = config["head_size"], config["heads"]
    write_artifact(path, KIND, KINDS[KIND], content)


MUTATIONS: dict[Callable[[Path, random.Random, QuantizedModel], None], int] = {
    lambda path, draw, honest: honest.save(path): 30,  # the shape is odd enough
    with_changed_value: 15,
    with_changed_stream: 15,
    with_changed_numbers: 30,
    with_changed_sizes: 10,
}
"""How a file is made, and its share in percent."""


def mutated(path: Path, count: int, seed: int) -> tuple[int, Callable[[int], str]]:
    """The number of model files, and what becomes of each."""
    tokenizer = small_tokenizer()

    def case(number: int) -> str:
        draw = random.Random(f"{seed} {number}")
        write = draw.choices(list(MUTATIONS), list(MUTATIONS.values()))[0]
        try:
            write(path, draw, some_model(draw, tokenizer, plain=draw.choice([0, 0, 0, 0.05])))
        except (UserError, OverflowError) as error:
            return f"could not be written ({type(error).__name__})"
        return written_tokens(path)

    return count, case


def written_tokens(path: Path) -> str:
    """Read a model and write some tokens with it, one after the other, as a prompt and in rows."""
    try:
        loaded = load_model(path)
    except UserError as error:
        assert path.name in str(error), f"{error} does not name the file"
        return "refused"
    settings = SamplingSettings(temperature=0.8, top_k=0, top_p=0.95)
    try:
        generate_text(loaded, "Some text", 12, settings, seed=1)
    except UserError:
        return "refused as it writes"
    context, vocab_size = loaded.config.context, loaded.config.vocab_size
    decoder = make_decoder(loaded, batch=3)
    if context > 1:
        decoder.feed([[number * 7 % vocab_size for number in range(min(context - 1, 150))]])
        decoder.feed([[0], [vocab_size - 1], [1]])
    return f"wrote with {type(decoder).__name__}"


def main() -> None:
    """Run the tests and the mutated files; leave with 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutated", type=int, default=2000, help="mutated files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--within", choices=("tests", "files"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.within is None:
        for task in ("tests", "files"):
            with tempfile.TemporaryDirectory() as name:
                in_sanitized_process([*sys.argv[1:], "--within", task], Path(name))
        return
    torch.set_num_threads(1)
    native.TIMEOUT = 900  # for a loaded machine; the checks take ten times as long to compile
    assert native.library() is not None, "there is no engine to watch"
    engine.large_pages = WatchedPages
    if asked.within == "tests":
        sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *TESTS]))
    with tempfile.TemporaryDirectory() as name:
        cases = mutated(Path(name) / "mutated.pt", asked.mutated, asked.seed)
        results = run_isolated(*cases, seconds=60, memory=4 << 30)
    print(f"mutated models: {held(results)}", flush=True)
    sys.exit(any(result.startswith("FAILED") for result in results))


if __name__ == "__main__":
    main()
