"""How fast training is, of what the machine's matrix products allow.

    python tests/benchmarks/throughput.py                  on a GPU if there is one
    python tests/benchmarks/throughput.py --profile        and what the time goes to

Steps are the training loop's own, on random tokens, eager and compiled: of the model of `quick` on
a CPU, of GPT-2 124M and of the model of `best` on a GPU. FLOPs are those of PaLM (Chowdhery et al.
2022, appendix B): 6 for each weight of a matrix product and 12 x layers x width x context for
attention, a token. Their rate is given as a share of that of one large product in the same type,
measured first, and on a GPU as MFU, of `--peak`. Nothing else should run on the machine.
"""

import argparse
import statistics
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from stages.lm.data.dataset import TokenData  # noqa: E402
from stages.lm.data.meta import TokenizerMeta, TokensMeta  # noqa: E402
from stages.lm.model.config import ModelConfig  # noqa: E402
from stages.lm.model.runtime import Machine, pick_machine  # noqa: E402
from stages.lm.model.transformer import Transformer  # noqa: E402
from stages.lm.settings.loader import load_section  # noqa: E402
from stages.lm.settings.model import ModelSettings  # noqa: E402
from stages.lm.settings.recipes import derive  # noqa: E402
from stages.lm.settings.runtime import RuntimeSettings  # noqa: E402
from stages.lm.settings.train import TrainSettings  # noqa: E402
from stages.lm.training.trainer import Trainer  # noqa: E402

GPT2 = ModelConfig(
    arch="gpt2",
    vocab_size=50_257,
    context=1024,
    layers=12,
    heads=12,
    kv_heads=12,
    head_size=64,
    width=768,
    ff_width=3072,
    tie_embeddings=True,
    dropout=0.0,
)
GPT2_RATES = {"lr": 0.01, "embedding_lr": 0.003, "head_lr": 0.003}
TEXT_BYTES = 1_000_000
"""The size of text whose recipes are measured."""
SIDES = {"cuda": 8192, "cpu": 2048}
"""Of the matrices of the large product."""
ROUNDS = 3


def main() -> None:
    """Measure every shape and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=10, help="in each of three rounds")
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 32], help="of GPT-2")
    parser.add_argument("--peak", type=float, default=989.0, help="TFLOP/s, an H100's by default")
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = pick_machine(RuntimeSettings(device=device, threads=0, checkpoint_steps=0), "auto")
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {machine.threads} threads"
    print(f"{name}, torch {torch.__version__}, {machine.precision}")
    rate = product_rate(machine)
    side = SIDES[device]
    print(f"a product of {side} x {side} matrices: {rate / 1e12:.3g} TFLOP/s\n")
    print(f"{'':<12} {'windows':>9} {'':>9} {'first s':>8} {'ms/step':>8} {'tokens/s':>10}", end="")
    print(f" {'TFLOP/s':>8} {'of product':>10}" + " " * 4 + "MFU" * (device == "cuda"))
    cases = [("quick", *of_recipe("quick"))]
    if device == "cuda":
        gpt2 = replace(of_recipe("quick")[1], **GPT2_RATES)
        cases = [("GPT-2 124M", GPT2, replace(gpt2, batch_size=n)) for n in arguments.batches]
        cases.append(("best", *of_recipe("best")))
    for name, config, settings in cases:
        for mode in ("off", "on"):
            changed = replace(settings, compile=mode)
            first, seconds, tokens = measure(
                config, changed, machine, arguments.steps, arguments.profile
            )
            flops = tokens / seconds * flops_per_token(config)
            how = "compiled" if mode == "on" else "eager"
            utilisation = f" {flops / arguments.peak / 1e12:>6.1%}" if device == "cuda" else ""
            print(
                f"{name:<12} {settings.batch_size:>5} x {settings.accumulate} "
                f"{how:>9} {first:>8.1f} {seconds * 1000:>8.1f} "
                f"{tokens / seconds:>10,.0f} {flops / 1e12:>8.3g} "
                f"{flops / rate:>10.1%}{utilisation}",
                flush=True,
            )


def of_recipe(recipe: str) -> tuple[ModelConfig, TrainSettings]:
    """The model that a recipe trains on a text, and how."""
    values = derive(recipe, TEXT_BYTES, {})
    fields = asdict(load_section(ModelSettings, auto=values))
    del fields["init"]
    config = ModelConfig(
        **fields,
        vocab_size=values["tokenize.vocab_size"],
        head_size=fields["width"] // fields["heads"],
    )
    return config, load_section(TrainSettings, auto=values)


def product_rate(machine: Machine) -> float:
    """FLOP/s of one large product of random matrices."""
    side = SIDES[machine.device.type]
    dtype = torch.bfloat16 if machine.precision == "bf16" else torch.float32
    left, right = torch.randn(2, side, side).to(machine.device, dtype)
    times = []
    for _ in range(13):
        began = now(machine)
        left @ right
        times.append(now(machine) - began)
    return 2 * side**3 / statistics.median(times[3:])


def now(machine: Machine) -> float:
    """Seconds, once the device has done what it was told."""
    if machine.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def flops_per_token(config: ModelConfig) -> float:
    """Of a training step, forward and backward."""
    with torch.device("meta"):
        model = Transformer(config)
    weights = sum(parameter.numel() for parameter, _ in model.block_matrices())
    weights += config.padded_vocab * config.width
    return 6.0 * weights + 12.0 * config.layers * config.width * config.context


def measure(
    config: ModelConfig, settings: TrainSettings, machine: Machine, steps: int, profile: bool
) -> tuple[float, float, int]:
    """Seconds of the first step and of a later one, and the tokens of a step."""
    torch._dynamo.reset()
    run = random_trainer(config, settings, machine, ROUNDS * steps + 8)

    def walk(count: int) -> float:
        began = now(machine)
        for _ in range(count):
            run._step()
            run.progress.step += 1
        return (now(machine) - began) / count

    first = walk(1)
    walk(2)
    seconds = statistics.median(walk(steps) for _ in range(ROUNDS))
    if profile:
        with torch.profiler.profile() as profiler:
            walk(2)
        by = f"self_{machine.device.type}_time_total"
        print(profiler.key_averages().table(sort_by=by, row_limit=14))
    return first, seconds, run.batches.tokens_per_step


def random_trainer(
    config: ModelConfig, settings: TrainSettings, machine: Machine, steps: int
) -> Trainer:
    """A trainer at its first step, with random tokens for so many."""
    count = settings.batch_size * settings.accumulate * config.context * steps
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, count).astype(np.uint16)
    meta = TokensMeta(config.vocab_size, TokenizerMeta("bpe", ""), {}, "", "")
    merges = np.zeros((config.vocab_size, 2), np.int64)
    data = TokenData(tokens, tokens, tokens, merges, meta, vocabulary="")
    trainer = Trainer(Transformer(config), data, settings, machine)
    trainer.initialize("random")
    trainer.model.train()
    return trainer


if __name__ == "__main__":
    main()
