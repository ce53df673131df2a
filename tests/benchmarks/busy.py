"""How fast the work goes beside other programs, with and without `busy_machine`.

    python tests/benchmarks/busy.py [--seconds 10] [--rounds 3] [--work train score ...]

`train`: steps of the default model on random tokens. `score`: its loss on unseen tokens, as
quantize and evaluate measure it. `write`: text from its quantized file (the C engine) and
`write float`: from its checkpoint (torch). Each alone, beside one and two processes that never
rest, and beside a second process of the same work. `before` is libgomp's own waiting (300,000
rounds), `after` what the stages do. The two take turns, and the median of the rounds is shown:
tokens a second, and seconds of processor time for each step (a batch, 8,192 scored tokens, or a
text of 100 tokens).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "benchmarks")]

MODES = {"before": {"GOMP_SPINCOUNT": "300000"}, "after": {}}
LOADS = {
    "alone": (0, 1),
    "beside one busy process": (1, 1),
    "beside two busy processes": (2, 1),
    "beside a second one": (0, 2),
}
"""Busy processes, and processes that do the measured work."""
WRITTEN = 100


def main() -> None:
    """Print a line for each work and load."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs="+", default=list(WORK), choices=list(WORK))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.work[0], arguments.seconds, Path(arguments.worker))
        return
    print(f"{'':<12} {'':<26} {'before':>28} {'after':>28}")
    for name in arguments.work:
        for load, (busy, processes) in LOADS.items():
            rounds: dict[str, list[list[tuple[float, float]]]] = {mode: [] for mode in MODES}
            for _ in range(arguments.rounds):
                for mode, variables in MODES.items():
                    found = measure(name, arguments.seconds, busy, processes, variables)
                    rounds[mode].append(found)
            cells = [shown(rounds[mode]) for mode in MODES]
            print(f"{name:<12} {load:<26} {cells[0]:>28} {cells[1]:>28}", flush=True)


def shown(rounds: list[list[tuple[float, float]]]) -> str:
    """Medians over the rounds: tokens a second of each process, processor seconds a step."""
    rates = [statistics.median(sorted(r)[i][0] for r in rounds) for i in range(len(rounds[0]))]
    cost = statistics.median(seconds for r in rounds for _, seconds in r)
    return f"{' + '.join(f'{rate:,.0f}' for rate in rates)}  {cost:.2f} s"


def measure(
    name: str, seconds: float, busy: int, processes: int, variables: dict[str, str]
) -> list[tuple[float, float]]:
    """Tokens a second and processor seconds a step of each process."""
    waiting = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"}
    environment = {key: value for key, value in os.environ.items() if key not in waiting}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--work", name, "--seconds", str(seconds)]
        workers = [
            subprocess.Popen(
                [*command, "--worker", folder],
                env=environment | variables,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(processes)
        ]
        while len(list(Path(folder).glob("ready-*"))) < processes:
            time.sleep(0.1)
            assert all(worker.poll() is None for worker in workers), "a worker failed"
        others = [subprocess.Popen([sys.executable, "-c", "while 1: pass"]) for _ in range(busy)]
        Path(folder, "go").touch()
        outputs = [worker.communicate()[0].split() for worker in workers]
        for other in others:
            other.kill()
            other.wait()
    return [(float(rate), float(cost)) for rate, cost in outputs]


def work(name: str, seconds: float, folder: Path) -> None:
    """Be a worker: get ready, wait for the others, work for so long, print the figures."""
    step, tokens = WORK[name]()
    for _ in range(3):
        step()
    Path(folder, f"ready-{os.getpid()}").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.02)
    # The first second belongs to the watcher, which has to see the load.
    began = time.perf_counter()
    while time.perf_counter() - began < 1:
        step()
    began, processor, steps = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    elapsed = time.perf_counter() - began
    print(steps * tokens / elapsed, (time.process_time() - processor) / steps)


Step = tuple[Callable[[], object], int]
"""Something to do again and again, and the tokens it takes in or gives out."""


def train() -> Step:
    """Steps of the training loop."""
    import throughput

    from stages.lm.model.runtime import pick_machine
    from stages.lm.settings.runtime import RuntimeSettings

    machine = pick_machine(RuntimeSettings(device="cpu", threads=0, checkpoint_steps=0), "auto")
    config, settings = throughput.of_recipe("quick")
    trainer = throughput.random_trainer(config, replace(settings, compile="off"), machine, 1_000)

    def step() -> None:
        trainer._step()
        trainer.progress.step += 1

    return step, trainer.batches.tokens_per_step


def score() -> Step:
    """Loss of the default model."""
    import numpy as np
    import throughput

    from stages.lm.model.runtime import pick_machine
    from stages.lm.model.scoring import BATCH_TOKENS, score
    from stages.lm.model.transformer import Transformer
    from stages.lm.settings.runtime import RuntimeSettings

    machine = pick_machine(RuntimeSettings(device="cpu", threads=0, checkpoint_steps=0))
    config, _ = throughput.of_recipe("quick")
    model = Transformer(config)
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, BATCH_TOKENS)
    return lambda: score(model, tokens, tokens[:1], machine), BATCH_TOKENS


def write(quantized: bool) -> Step:
    """Text from a model of random weights."""
    import throughput

    from stages.lm.data.meta import TokenizerMeta
    from stages.lm.inference.generation import SamplingSettings, generate_text
    from stages.lm.inference.loading import load_model
    from stages.lm.model.checkpoint import Checkpoint
    from stages.lm.model.transformer import Transformer
    from stages.lm.quantization.quantized_model import quantize_checkpoint
    from stages.lm.text.tokenizer import train_bpe

    config, _ = throughput.of_recipe("quick")
    tokenizer = train_bpe(iter(["a text of few words, said again and again. " * 40]), 300, "gpt-2")
    config = replace(config, vocab_size=tokenizer.vocab_size)
    kept = TokenizerMeta(tokenizer.name, tokenizer.pattern).stored(tokenizer.to_text())
    checkpoint = Checkpoint(config, Transformer(config).state_dict(), kept, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt")
        (quantize_checkpoint(checkpoint, "int4") if quantized else checkpoint).save(path)
        loaded = load_model(path)
    settings = SamplingSettings()
    return lambda: generate_text(loaded, "a text", WRITTEN, settings, 1), WRITTEN


WORK: dict[str, Callable[[], Step]] = {
    "train": train,
    "score": score,
    "write": lambda: write(quantized=True),
    "write float": lambda: write(quantized=False),
}

if __name__ == "__main__":
    main()
