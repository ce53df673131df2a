"""Names, one a line: this project, nanoGPT's way and makemore's, on the same names and seconds.

    git clone https://github.com/karpathy/nanoGPT
    git clone https://github.com/karpathy/makemore
    pip install names
    python tests/benchmarks/names.py --nanogpt nanoGPT --makemore makemore

5,000 of the first names that the package `names` carries (US census of 1990) are a table with one
column. This project makes of it what it makes of any table, with the committed settings and one
thread. Both others then train on the names of its training split, for as many seconds of processor
time as its stage `train` took in all, with their own model, batches and optimizer: nanoGPT as its
README does on a CPU, on one text with a name a line; makemore on each name with an end. They keep
the weights that are best on the names of the validation split, as this project does, and their
evaluations are not counted.

Bits per byte are those of all held-out names (validation and test), the end of each counted as a
byte. nanoGPT reads them as one text and sees at least 32 characters before each. Then each writes
1,000 names, by its probabilities as they are: the share that ends within 30 characters, and the
shares that are new (not in the training split) and different. Nothing else should run meanwhile.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
import torch.nn.functional as F
from nanogpt import ROOT, edit_params, run_command

from stages.lm.data.dataset import TokenData
from stages.lm.data.splits import SPLITS
from stages.lm.data.token_text import TokenText
from stages.lm.inference.generation import SamplingSettings, generate_steps
from stages.lm.inference.loading import load_model
from stages.lm.text.records import TEXT_END
from stages.lm.text.stored_tokenizer import load_tokenizer

COUNT = 5000
WRITTEN = 1000
LONGEST = 30
"""Characters of a written name."""
PLAIN = SamplingSettings(temperature=1, top_p=1)
"""The probabilities as they are."""
BATCH = 50
EVERY = 100
"""Steps between two evaluations."""
Names = dict[str, list[str]]
"""Those of each split."""


@dataclass
class Result:
    """How a model did."""

    name: str
    seconds: float
    nats: dict[str, float]
    """Of all names of a split and their ends."""
    written: list[str]
    """Names; one that ended has a new line at its end."""


def main() -> None:
    """Print a row for each model and way of sampling."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a checkout")
    parser.add_argument("--makemore", type=Path, required=True, help="a checkout")
    parser.add_argument("--names", type=Path, help="a file with a name a line, instead of these")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    every = asked.names.read_text("utf-8").split("\n") if asked.names else census_names()
    with tempfile.TemporaryDirectory() as folder:
        names, ours = train_ours([name for name in every if name], asked.seed, Path(folder))
    print(", ".join(f"{split} {len(part):,}" for split, part in names.items()), "names")
    for result in ours:
        print_row(names, result)
    for dropout in (0.0, 0.2):
        torch.manual_seed(asked.seed)
        print_row(names, nanogpt(names, asked.nanogpt, ours[0].seconds, dropout))
    torch.manual_seed(asked.seed)
    print_row(names, makemore(names, asked.makemore, ours[0].seconds))


def census_names() -> list[str]:
    """The first names of the package, in an order drawn once."""
    package = importlib.metadata.distribution("names")
    files = (package.locate_file(f"names/dist.{gender}.first") for gender in ("female", "male"))
    lines = (line for file in files for line in Path(str(file)).read_text("ascii").splitlines())
    every = sorted({line.split()[0].capitalize() for line in lines if line})
    return random.Random(1).sample(every, COUNT)


def print_row(names: Names, result: Result) -> None:
    """What a model reached."""
    bits = []
    for splits in (("val",), ("test",), ("val", "test")):
        size = sum(len(name.encode()) + 1 for split in splits for name in names[split])
        bits.append(sum(result.nats[split] for split in splits) / math.log(2) / size)
    ended = [name[:-1] for name in result.written if name.endswith("\n")]
    new = [name for name in ended if name not in set(names["train"])]
    print(
        f"| {result.name} | {result.seconds:.0f} s | {bits[2]:.3f} ({bits[0]:.3f}, {bits[1]:.3f}) "
        f"| {len(ended) / len(result.written):.1%} | {len(new) / len(result.written):.1%} "
        f"| {len(set(ended)) / len(result.written):.1%} | {', '.join(ended[:8])}",
        flush=True,
    )


# This project -------------------------------------------------------------------------------------


def train_ours(every: list[str], seed: int, folder: Path) -> tuple[Names, list[Result]]:
    """Run the stages in a copy of what is committed: the splits, and how the models did."""
    archive = ["git", "archive", "HEAD"]
    content = subprocess.run(archive, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "x"], cwd=folder, input=content, check=True)
    (folder / "metrics" / "corpus.json").unlink(missing_ok=True)
    (folder / "data" / "input" / "names.csv").write_text("\n".join(["name", *every]) + "\n")
    edit_params(folder / "params.yaml", {"runtime.threads": "1", "train.seed": str(seed)})
    seconds = {}
    for stage in ("corpus", "tokenize_text", "train", "quantize", "evaluate"):
        before = processor_seconds()
        run_command([sys.executable, "-m", f"stages.{stage}"], folder)
        seconds[stage] = processor_seconds() - before
    names = names_of(TokenData.load(folder / "models" / "tokens"))
    evaluated = json.loads((folder / "metrics" / "evaluate.json").read_text("utf-8"))
    sizes = {split: sum(len(n.encode()) + 1 for n in part) for split, part in names.items()}
    results = []
    for model, file, sampling in (
        ("float", "checkpoint.pt", PLAIN),
        ("quantized", "trained_model_quantized.pt", PLAIN),
        ("quantized", "trained_model_quantized.pt", SamplingSettings()),
    ):
        losses = evaluated[model]
        nats = {split: losses[split]["nats_per_byte"] * sizes[split] for split in SPLITS[1:]}
        label = f"this project, {model}{'' if sampling is PLAIN else ', default sampling'}"
        written = ours_written(folder / "models" / file, sampling)
        results.append(Result(label, seconds["train"], nats, written))
    return names, results


def processor_seconds() -> float:
    """Those of all processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def names_of(data: TokenData) -> Names:
    """The names of each split."""
    tokenizer = load_tokenizer(data.meta.tokenizer.stored(data.vocabulary))
    texts = {split: TokenText(getattr(data, split), tokenizer.tokens) for split in SPLITS}
    return {
        split: [name.decode() for name in text.read(0, text.size).split(TEXT_END) if name]
        for split, text in texts.items()
    }


def ours_written(path: Path, sampling: SamplingSettings) -> list[str]:
    """Names that a model writes after an empty prompt."""
    loaded, names = load_model(path), []
    for start in range(0, WRITTEN, BATCH):
        indices = range(start, start + BATCH)
        rows = [*generate_steps(loaded, "", LONGEST + 1, sampling, 1, indices)]
        for tokens in zip(*rows, strict=True):
            steps = [step for step in tokens if step]
            ended = steps[-1].token in loaded.tokenizer.control
            names.append("".join(step.text for step in steps) + "\n" * ended)
    return names


# The others ---------------------------------------------------------------------------------------


def module(path: Path) -> ModuleType:
    """A module of a checkout."""
    # makemore logs to TensorBoard, which nobody reads here.
    sys.modules.setdefault("torch.utils.tensorboard", SimpleNamespace(SummaryWriter=None))  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    made = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def train_for(
    seconds: float,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    loss_on: Callable[[str], float],
    rate: Callable[[int, float], float],
    limit: float = math.inf,
) -> float:
    """Train for so many seconds and keep the weights that are best on val; returns the seconds.

    `rate` gives the learning rate by step and share of the time, `limit` is that of the gradient.
    """
    best, weights, spent, step = math.inf, model.state_dict(), 0.0, 0
    while spent < seconds:
        began = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, spent / seconds)
        _, loss = model(*next(batches))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
        optimizer.step()
        spent, step = spent + time.process_time() - began, step + 1
        if step % EVERY == 0 or spent >= seconds:
            model.eval()
            if (now := loss_on("val")) < best:
                best = now
                weights = {name: value.clone() for name, value in model.state_dict().items()}
                at = spent
            model.train()
    model.load_state_dict(weights)
    model.eval()
    print(f"{step:,} steps; best after {at:.0f} s", flush=True)
    return spent


def nanogpt(names: Names, checkout: Path, seconds: float, dropout: float) -> Result:
    """A character model of one text, as nanoGPT's README trains it on a CPU."""
    source, length = module(checkout / "model.py"), 64
    characters = sorted({"\n", *"".join(name for part in names.values() for name in part)})
    ids = {
        split: torch.tensor([characters.index(each) for each in "\n" + "\n".join(part) + "\n"])
        for split, part in names.items()
    }
    config = source.GPTConfig(
        block_size=length, vocab_size=len(characters), n_layer=4, n_head=4, n_embd=128,
        dropout=dropout, bias=False,
    )  # fmt: skip
    model = source.GPT(config)
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            starts = torch.randint(len(ids["train"]) - length, (12, 1)) + torch.arange(length + 1)
            rows = ids["train"][starts]
            yield rows[:, :-1], rows[:, 1:].contiguous()

    @torch.no_grad()
    def nats(split: str) -> float:
        text, half, total = ids[split], length // 2, 0.0
        for start in range(0, len(text) - 1, half):
            row = text[max(0, start - half) : start + half + 1]
            logits, _ = model(row[None, :-1], row[None, 1:].contiguous())
            scored = min(half, len(text) - 1 - start)
            total += float(F.cross_entropy(logits[0, -scored:], row[-scored:], reduction="sum"))
        return total

    def rate(step: int, share: float) -> float:
        return (
            1e-3 * (step + 1) / 100
            if step < 100
            else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * share))
        )

    seconds = train_for(seconds, model, optimizer, batches(), nats, rate, 1.0)
    begin = torch.full((WRITTEN, 1), characters.index("\n"))
    rows = model.generate(begin, LONGEST + 1)[:, 1:].tolist()
    written = ["".join(characters[each] for each in row) for row in rows]
    written = [text[: text.index("\n") + 1] if "\n" in text else text for text in written]
    held_out = {split: nats(split) for split in SPLITS[1:]}
    return Result(f"nanoGPT, dropout {dropout}", seconds, held_out, written)


def makemore(names: Names, checkout: Path, seconds: float) -> Result:
    """A character model of names that begin and end, with makemore's own settings."""
    source = module(checkout / "makemore.py")
    every = [name for part in names.values() for name in part]
    characters, longest = sorted(set("".join(every))), max(map(len, every))
    sets = {split: source.CharDataset(part, characters, longest) for split, part in names.items()}
    config = source.ModelConfig(vocab_size=len(characters) + 1, block_size=longest + 1)
    model = source.Transformer(config)
    settings = {"lr": 5e-4, "betas": (0.9, 0.99), "weight_decay": 0.01}

    def stacked(split: str, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = zip(*(sets[split][number] for number in indices), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while True:
            yield stacked("train", torch.randint(len(sets["train"]), (32,)).tolist())

    @torch.no_grad()
    def nats(split: str) -> float:
        inputs, targets = stacked(split, list(range(len(sets[split]))))
        logits, _ = model(inputs)
        loss = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum"
        )
        return float(loss)

    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    seconds = train_for(seconds, model, optimizer, batches(), nats, lambda step, share: 5e-4)
    begin = torch.zeros(WRITTEN, 1, dtype=torch.long)
    rows = source.generate(model, begin, longest + 1, do_sample=True)
    written = []
    for row in rows[:, 1:].tolist():
        end = row.index(0) if 0 in row else len(row)
        written.append(sets["train"].decode(row[:end]) + "\n" * (end < len(row)))
    return Result("makemore", seconds, {split: nats(split) for split in SPLITS[1:]}, written)


if __name__ == "__main__":
    main()
