"""This project and nanoGPT on the same text and machine: held-out loss against training time.

    git clone https://github.com/karpathy/nanoGPT
    python tests/benchmarks/nanogpt.py --nanogpt nanoGPT --text data/input.txt --seeds 1 2 3

Both train on the first 90 % of the text and are scored on all of the last 10 %, in nats per byte.
nanoGPT runs as its README runs it on a CPU (its character model; 2,000 steps of 12 windows of 64),
from a copy of the checkout; this project runs its own stages, by command line, from a copy of what
is committed. nanoGPT's training seconds leave out its evaluations and saves; this project's, from
`training.log`, hold the validation at each epoch's end and all saving but the last. `--ours` names
entries of `OURS`, one or more. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from stages.lm.data.dataset import TokenData  # noqa: E402
from stages.lm.data.meta import TokenizerMeta, TokensMeta  # noqa: E402
from stages.lm.model.config import ModelConfig  # noqa: E402
from stages.lm.model.runtime import pick_machine  # noqa: E402
from stages.lm.model.scoring import score  # noqa: E402
from stages.lm.model.transformer import Transformer  # noqa: E402
from stages.lm.settings.runtime import RuntimeSettings  # noqa: E402
from stages.lm.settings.train import TrainSettings  # noqa: E402
from stages.lm.training.initialization import set_initial_weights  # noqa: E402
from stages.lm.training.trainer import Trainer  # noqa: E402

RECIPE = (
    "config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 "
    "--log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 "
    "--dropout=0.0"
)
"""nanoGPT's own for a CPU, from its README; `--max_iters` and `--lr_decay_iters` are added."""
EVAL_INTERVAL = 250
"""Steps between its evaluations, in that configuration."""

OURS: dict[str, dict[str, str]] = {
    "quick": {"recipe": "quick"},
    "best": {"recipe": "best"},
}
"""Variants by name: the settings in which each differs from the committed `params.yaml`."""

HELD_OUT = 0.1
"""Share of the text, at its end, that neither side trains on."""


@dataclass(frozen=True)
class NanoResult:
    """One run of nanoGPT."""

    curve: list[tuple[float, float]]
    """Seconds of training, nats a byte of the random batches that its own log reports."""
    seconds: float
    held_out: float
    """Nats a byte over all held-out text, of its checkpoint."""
    tokens_per_second: float


def main() -> None:
    """Run both sides for every seed and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout of nanoGPT")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ours", nargs="+", choices=sorted(OURS), default=["quick"])
    parser.add_argument("--iters", type=int, default=2000, help="steps of nanoGPT")
    arguments = parser.parse_args()
    rows: list[tuple[str, int, list[tuple[float, float]], float | None]] = []
    rates: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            workdir = Path(folder) / str(seed)
            result = train_nanogpt(
                arguments.nanogpt, arguments.text, seed, arguments.iters, workdir / "nanogpt"
            )
            rates.append(result.tokens_per_second)
            rows.append(("nanoGPT", seed, [(result.seconds, result.held_out)], result.curve[-1][1]))
            for name in arguments.ours:
                curve = train_ours(arguments.text, OURS[name], seed, workdir / name)
                rows.append((f"ours, {name}", seed, curve, None))
            start = our_start(workdir / arguments.ours[0] / "models" / "tokens", seed)
            rows.append(("ours, bigrams", seed, [start], None))
    print_table(rows)
    ours = our_tokens_per_second()
    theirs = statistics.median(rates)
    print(
        "\nat equal shape (4 layers of width 128, 12 windows of 64; median step, "
        f"{torch.get_num_threads()} threads):\n"
        f"ours {ours:,.0f} tokens/s, nanoGPT {theirs:,.0f} tokens/s"
    )


def print_table(rows: list[tuple[str, int, list[tuple[float, float]], float | None]]) -> None:
    """Print a line for every measured point."""
    print(f"\n{'':<16} {'seed':>5} {'training s':>11} {'nats/byte':>10}  its own log")
    for name, seed, curve, logged in rows:
        for seconds, loss in curve:
            own = "" if logged is None else f"{logged:.4f}"
            print(f"{name:<16} {seed:>5} {seconds:>11.1f} {loss:>10.4f}  {own}".rstrip())


# nanoGPT --------------------------------------------------------------------------------------


def train_nanogpt(checkout: Path, text: Path, seed: int, iters: int, workdir: Path) -> NanoResult:
    """Train in a copy of the checkout, as its README does, and score its checkpoint.

    Its configuration saves only where its 20 random batches of held-out text improved, which is the
    last step in nearly every run.
    """
    shutil.copytree(checkout, workdir, ignore=shutil.ignore_patterns(".git", "out*", "*.bin"))
    bytes_per_token = prepare_characters(text, workdir / "data" / "shakespeare_char")
    set_seed(workdir / "train.py", seed)
    command = [sys.executable, "train.py", *RECIPE.split(), "--out_dir=out", f"--max_iters={iters}"]
    command += [f"--lr_decay_iters={iters}", f"--eval_interval={min(EVAL_INTERVAL, iters)}"]
    log = run_command(command, workdir)
    seconds, tokens_per_second, points = read_log(log, tokens=12 * 64)
    curve = [(at, loss / bytes_per_token) for at, loss in points]
    held_out = score_nanogpt(workdir) / bytes_per_token
    return NanoResult(curve, seconds, held_out, tokens_per_second)


def prepare_characters(text: Path, folder: Path) -> float:
    """What its `prepare.py` makes of a text; returns bytes a character of the held-out part."""
    content = text.read_bytes()
    characters = content.decode("utf-8", "replace")
    alphabet = sorted(set(characters))
    numbers = {character: number for number, character in enumerate(alphabet)}
    if len(numbers) > 1 << 16:
        raise SystemExit("error: more than 65,536 different characters; nanoGPT stores 16 bits")
    ids = np.array([numbers[character] for character in characters], dtype=np.uint16)
    cut = int(len(ids) * (1 - HELD_OUT))
    ids[:cut].tofile(folder / "train.bin")
    ids[cut:].tofile(folder / "val.bin")
    meta = {"vocab_size": len(alphabet), "itos": dict(enumerate(alphabet)), "stoi": numbers}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return len(characters[cut:].encode("utf-8")) / (len(ids) - cut)


def set_seed(script: Path, seed: int) -> None:
    """Give the script another seed; it has no option for it."""
    source = script.read_text("utf-8")
    changed = source.replace("torch.manual_seed(1337 + seed_offset)", f"torch.manual_seed({seed})")
    if changed == source:
        raise SystemExit(f"error: {script} does not set its seed where it did in 2025")
    script.write_text(changed, "utf-8")


def read_log(log: str, tokens: int) -> tuple[float, float, list[tuple[float, float]]]:
    """Seconds of training, tokens a second, and the points (seconds, nats a token) of a log.

    The time of an iteration that evaluates or saves holds that too; the median stands in for it.
    """
    times: list[float] = []
    points: list[tuple[int, float]] = []
    evaluating: set[int] = set()
    for line in log.splitlines():
        if match := re.match(r"step (\d+): .* val loss ([\d.]+)", line):
            evaluating.add(len(times))
            points.append((len(times), float(match[2])))
        elif match := re.match(r"iter \d+: .* time ([\d.]+)ms", line):
            times.append(float(match[1]) / 1000)
    if not times or not points:
        raise SystemExit(f"error: nanoGPT's log holds no step:\n{log[-2000:]}")
    median = statistics.median(times)
    alone = [median if place in evaluating else taken for place, taken in enumerate(times)]
    seconds = np.concatenate([[0.0], np.cumsum(alone)])
    # It trains one step more than it saves; that one is counted.
    return (
        float(seconds[-1]),
        tokens / median,
        [(float(seconds[place]), loss) for place, loss in points],
    )


SCORER = """
import numpy as np, torch
from model import GPT, GPTConfig
checkpoint = torch.load("out/ckpt.pt", map_location="cpu")
model = GPT(GPTConfig(**checkpoint["model_args"])).eval()
model.load_state_dict(checkpoint["model"])
tokens = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
length = checkpoint["model_args"]["block_size"]
nats, count = 0.0, 0
with torch.no_grad():
    for first in range(0, len(tokens) - 1, 64 * length):
        rows = tokens[first : first + 64 * length + 1]
        whole = (len(rows) - 1) // length * length
        parts = [(rows[:whole].view(-1, length), rows[1 : whole + 1].view(-1, length))]
        parts += [(rows[whole:-1][None], rows[whole + 1 :][None])]
        for inputs, targets in parts:
            if inputs.numel():
                _, loss = model(inputs, targets.contiguous())
                nats += loss.item() * targets.numel()
                count += targets.numel()
print(nats / count)
"""
"""Nats a token of a checkpoint over all of val.bin, in windows that follow each other."""


def score_nanogpt(workdir: Path) -> float:
    """Its checkpoint in nats a token, scored by its own `model.py` in a process of its own."""
    return float(run_command([sys.executable, "-c", SCORER], workdir).split()[-1])


# This project ---------------------------------------------------------------------------------


def train_ours(
    text: Path, setting: dict[str, str], seed: int, workdir: Path
) -> list[tuple[float, float]]:
    """Run the stages in a copy of what is committed: seconds of training, nats a held-out byte."""
    workdir.mkdir(parents=True)
    archive = subprocess.run(
        ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "x"], cwd=workdir, input=archive.stdout, check=True)
    (workdir / "metrics" / "corpus.json").unlink(missing_ok=True)
    shutil.copyfile(text, workdir / "data" / "input.txt")
    half = str(HELD_OUT / 2)
    fixed = {"tokenize.val_fraction": half, "tokenize.test_fraction": half, "train.seed": str(seed)}
    edit_params(workdir / "params.yaml", fixed | setting)
    for stage in ("corpus", "tokenize_text", "train", "quantize", "evaluate"):
        run_command([sys.executable, "-m", f"stages.{stage}"], workdir)
    evaluated = json.loads((workdir / "metrics" / "evaluate.json").read_text("utf-8"))
    log = (workdir / "metrics" / "training.log").read_text("utf-8")
    return [(training_seconds(log), evaluated["float"]["held_out"]["nats_per_byte"])]


def our_start(tokens: Path, seed: int) -> tuple[float, float]:
    """The first part of training alone: seconds it takes, nats a held-out byte after it."""
    data = TokenData.load(tokens)
    machine = pick_machine(RUNTIME, "auto")
    config = replace(SHAPE, arch="qwen3", vocab_size=data.meta.vocab_size, width=256)
    config = replace(config, head_size=64, ff_width=768, context=128, tie_embeddings=False)
    run = Trainer(Transformer(config), data, replace(SETTINGS, seed=seed), machine)
    began = time.perf_counter()
    set_initial_weights(run.model, data, machine, seed, "looking_back", None)
    seconds = time.perf_counter() - began
    held_out = np.concatenate([data.val, data.test])
    lead = data.preceding("val", config.context)
    nats, _ = score(run.model, held_out, lead, machine, min_context=64)
    return seconds, nats / sum(data.meta.splits[split].bytes for split in ("val", "test"))


def training_seconds(log: str) -> float:
    """The last `elapsed` of `training.log`, h:mm:ss."""
    hours, minutes, seconds = re.findall(r"(\d+):(\d\d):(\d\d) elapsed", log)[-1]
    return float(int(hours) * 3600 + int(minutes) * 60 + int(seconds))


def edit_params(path: Path, values: dict[str, str]) -> None:
    """Set `section.key` to what each value reads as in YAML."""
    params = yaml.safe_load(path.read_text("utf-8"))
    for name, value in values.items():
        section, _, key = name.rpartition(".")
        (params[section] if section else params)[key] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")


SHAPE = ModelConfig(
    arch="gpt2",
    vocab_size=65,
    context=64,
    layers=4,
    heads=4,
    kv_heads=4,
    head_size=32,
    width=128,
    ff_width=512,
    tie_embeddings=True,
    dropout=0.0,
)
"""nanoGPT's for a CPU; the graph is GPT-2's with its biases, which that leaves out."""
SETTINGS = TrainSettings(
    seed=1,
    epochs=1,
    batch_size=12,
    accumulate=1,
    adapt="full",
    lora_rank=32,
    lora_alpha=64,
    lora_targets="all",
    optimizer="adamw",
    lr=1e-3,
    embedding_lr=1e-3,
    head_lr=1e-3,
    warmup_steps=100,
    decay_fraction=0.6,
    final_lr_fraction=0.1,
    weight_decay=0.1,
    momentum=0.95,
    beta1=0.9,
    beta2=0.99,
    grad_clip=1.0,
    share_spellings=False,
    ema_decay=0.0,
    calibrate=False,
    split_tokens=0.0,
    patience=0,
    val_tokens=1,
    precision="auto",
    compile="on",
)
RUNTIME = RuntimeSettings(device="cpu", threads=0, checkpoint_steps=0)


def our_tokens_per_second(steps: int = 200) -> float:
    """Tokens a second of the whole training step at nanoGPT's shape, on random tokens."""
    tokens = np.random.default_rng(1).integers(0, SHAPE.vocab_size, 200_000).astype(np.uint16)
    meta = TokensMeta(SHAPE.vocab_size, TokenizerMeta("bpe", ""), {}, "", "")
    merges = np.zeros((SHAPE.vocab_size, 2), np.int64)
    data = TokenData(tokens, tokens, tokens, merges, meta, vocabulary="")
    run = Trainer(Transformer(SHAPE), data, SETTINGS, pick_machine(RUNTIME, "auto"))
    run.initialize("random")
    run.model.train()
    times = []
    for _ in range(min(steps, run.total_steps)):
        began = time.perf_counter()
        run._step()
        run.progress.step += 1
        times.append(time.perf_counter() - began)
    return run.batches.tokens_per_step / statistics.median(times)


def run_command(command: list[str], folder: Path) -> str:
    """The standard output of a command run in a folder; its own words where it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "DVC_ROOT"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command[:3])} failed:\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
