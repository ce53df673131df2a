r"""This project beside llama.cpp: the same weights, the same threads, in turn.

    python tests/benchmarks/llamacpp.py --python VENV/bin/python [parity] [speed]
    python tests/benchmarks/llamacpp.py --python VENV/bin/python \
        --checkpoint models/checkpoint.pt --tokens tokens loss

`parity`: what llama.cpp makes of our GGUF file (Kullback-Leibler divergence of its next-token
distributions from torch's, token ids of 100 kB of text in many scripts), and our decoder beside
torch's. `speed`: medians over interleaved rounds on an otherwise idle machine. `loss`: llama.cpp's
own files of a trained model, their bytes and what they lose on held-out text, and ours on the same
windows. VENV is an environment with llama-cpp-python; it runs there, in processes of its own.
Weights are random unless a checkpoint is given: speed does not depend on them.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.lm.data.dataset import TokenData
from stages.lm.data.meta import TokenizerMeta
from stages.lm.export.gguf_file import write_gguf
from stages.lm.inference.decoder import PackedDecoder, TorchDecoder, make_decoder
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import ModelConfig
from stages.lm.model.runtime import Machine
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.quantization.schemes import QuantizedWeight
from stages.lm.text.interface import Tokenizer
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, train_bpe
from stages.quantize import Trials

SHAPES = {
    "11M qwen3": ModelConfig(
        arch="qwen3", vocab_size=2048, context=1024, layers=6, heads=6, kv_heads=6, head_size=64,
        width=384, ff_width=1024, tie_embeddings=False, dropout=0.0,
    ),
    "124M gpt2": ModelConfig(
        arch="gpt2", vocab_size=50257, context=1024, layers=12, heads=12, kv_heads=12,
        head_size=64, width=768, ff_width=3072, tie_embeddings=True, dropout=0.0,
    ),
}  # fmt: skip
RIVALS = {"int8": "Q8_0", "int4": "Q4_0"}
PROMPT = 512
"""Tokens read at once."""
WRITTEN = 128
"""Tokens decoded one by one."""
SCRIPTS = ((0x61, 26), (0x430, 32), (0x4E00, 800), (0x627, 28), (0x905, 50), (0x1F600, 60))
"""First character and number of characters: Latin, Cyrillic, Han, Arabic, Devanagari, emoji."""
BETWEEN = (" ", " ", " ", "  ", "\n", "\r\n", "\n\n \t", ", ", "... ", "'s ", "'LL ", " 12345.6 ",
           "\u00a0", "\x00", "e\u0301", "_", "/", " (", "!?", "\u3000")  # fmt: skip


def mixed_text(size: int, seed: int) -> str:
    """Random words in many scripts, of about `size` bytes; short ones are repeated often."""
    draw = random.Random(seed)
    words, length = [], 0
    while length < size:
        first, count = draw.choice(SCRIPTS)
        letters = [chr(first + int(count * draw.random() ** 3)) for _ in range(draw.randint(1, 6))]
        word = "".join(letters)
        words += [draw.choice((word, word, word.upper(), word.title())), draw.choice(BETWEEN)]
        length += len("".join(words[-2:]).encode())
    return "".join(words)


def vocabulary(size: int) -> Tokenizer:
    """As many tokens as asked: learned ones, or for a large vocabulary all pairs of bytes."""
    if size <= 4096:
        return train_bpe(iter([mixed_text(400_000, 1)]), size, "gpt-2")
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes([a, b]) for a in range(256) for b in range(256)]
    ranks = {token: rank for rank, token in enumerate(tokens[:size])}
    return BytePairTokenizer(ranks, PATTERNS["gpt-2"], "pairs")


def random_checkpoint(config: ModelConfig) -> Checkpoint:
    """Random weights that give logits of a usual size."""
    generator = torch.Generator().manual_seed(0)
    tensors = Transformer(config).state_dict()
    for name, tensor in tensors.items():
        norm = "norm" in name and name.endswith("weight")
        tensor.normal_(
            float(norm), 0.1 if norm or "embedding" in name else 0.04, generator=generator
        )
    known = vocabulary(config.vocab_size)
    parts = TokenizerMeta(known.name, known.pattern).stored(known.to_text())
    return Checkpoint(config, tensors, parts, {})


class Llama:
    """llama.cpp in a process of its own."""

    def __init__(self, python: Path) -> None:
        worker = Path(__file__).with_name("llamacpp_worker.py")
        self.process = subprocess.Popen(
            [python, worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            assert self.process.stdin and self.process.stdout
            self.process.stdin.write(json.dumps([name, arguments]) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

        return call

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def packed(loaded: LoadedModel, batch: int = 1) -> TorchDecoder:
    """What `make_decoder` takes without a compiler."""
    step = loaded.token_step
    return PackedDecoder(loaded, batch, step) if step else TorchDecoder(loaded, batch)


class Ours:
    """This project in this process: `make_decoder`'s choice, or torch alone. See `Worker`."""

    def __init__(self, fallback: bool) -> None:
        self.make = packed if fallback else make_decoder

    def open(self, path: str, threads: int, flash: bool, context: int) -> float:
        start = time.perf_counter()
        self.loaded = load_model(Path(path))
        self.decoder = self.make(self.loaded, 1)
        self.decoder.feed([[0]])
        return time.perf_counter() - start

    def decode(self, prompt: list[int], ids: list[int]) -> float:
        self.decoder.reset()
        self.decoder.feed([prompt])
        start = time.perf_counter()
        for token in ids:
            self.decoder.feed([[token]])
        return time.perf_counter() - start

    def prefill(self, ids: list[int]) -> float:
        self.decoder.reset()
        start = time.perf_counter()
        self.decoder.feed([ids])
        return time.perf_counter() - start

    def first(self, text: str) -> float:
        start = time.perf_counter()
        ids = self.loaded.tokenizer.encode(text.encode())
        self.decoder.reset()
        self.decoder.feed([ids])[0].argmax().item()
        return time.perf_counter() - start

    def close(self) -> None:
        """Nothing to end."""


# Parity -------------------------------------------------------------------------------------------


def parity(name: str, checkpoint: Checkpoint, asked: argparse.Namespace, folder: Path) -> None:
    """Print what differs between llama.cpp, torch and our decoder on the same weights."""
    path = folder / "parity.pt"
    checkpoint.save(path)
    loaded = load_model(path)
    write_gguf(loaded, folder / "f32.gguf", "f32")
    llama = Llama(asked.python)
    opened = (str(folder / "f32.gguf"), 1, False, checkpoint.config.context)
    llama.open(*opened)
    text = asked.text.read_text("utf-8") if asked.text else mixed_text(100_000, 2)
    ids = loaded.tokenizer.encode(text.encode())
    same = llama.tokenize(text) == ids
    print(f"{name}: ids of {len(text.encode()):,} bytes, {len(ids):,} tokens: "
          f"{'identical' if same else 'DIFFERENT'}")  # fmt: skip
    # Its cache is float16 unless told otherwise, which costs more than our export.
    for cache in ("float16", "float32"):
        llama.open(*opened, cache == "float32")
        told = divergence(loaded, llama, ids, folder / "logits.npy")
        print(f"{name}: float32 weights, {cache} cache: {told}")
    llama.close()
    for scheme, file in quantized_files(checkpoint, folder).items():
        for make in (make_decoder, packed):
            greedy_parity(f"{name}, {scheme}", file, ids[:16], make)


@torch.inference_mode()
def divergence(loaded: LoadedModel, llama: Llama, ids: list[int], file: Path) -> str:
    """How llama.cpp's distributions differ from torch's over the first windows of `ids`."""
    window = min(PROMPT, loaded.model.config.context)
    gaps, divergences, agreed = [], [], []
    for start in range(0, min(len(ids) - window, 8 * window), window):
        rows = ids[start : start + window]
        llama.logits(rows, str(file))
        theirs = torch.from_numpy(np.load(file)).double()
        ours = loaded.model(torch.tensor([rows]))[0].double()
        gaps.append((ours - theirs).abs().max().item())
        agreed.append(ours.argmax(-1) == theirs.argmax(-1))
        p, q = ours.log_softmax(-1), theirs.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum(-1))
    kl = torch.cat(divergences)
    return (
        f"torch || llama.cpp over {len(kl):,} tokens: KL mean {kl.mean():.1e}, max "
        f"{kl.max():.1e}; logits differ by at most {max(gaps):.1e} (std {ours.std():.2f}); top "
        f"token the same {100 * torch.cat(agreed).double().mean():.2f} %"
    )


def greedy_parity(
    name: str, file: Path, prompt: list[int], make: Callable[[LoadedModel], Any]
) -> None:
    """Print how a decoder follows torch over the greedy tokens that torch writes."""
    loaded = load_model(file)
    ours, theirs = make(loaded), TorchDecoder(loaded, 1)
    count = min(1000, ours.context - len(prompt))
    fresh, same, divergences = prompt, [], []
    for _ in range(count):
        p, q = (decoder.feed([fresh])[0].double() for decoder in (theirs, ours))
        fresh = [int(p.argmax())]
        same.append(fresh[0] == int(q.argmax()))
        p, q = p.log_softmax(-1), q.log_softmax(-1)
        divergences.append((p.exp() * (p - q)).sum().item())
    first = same.index(False) if False in same else count
    print(
        f"{name}: {type(ours).__name__} beside torch over {count:,} greedy tokens: the same token "
        f"{sum(same):,} times, the first {first:,} without exception; KL mean "
        f"{statistics.mean(divergences):.1e}, largest {max(divergences):.1e}"
    )


def pattern_parity(asked: argparse.Namespace, folder: Path) -> None:
    """Print for each pattern whether llama.cpp cuts 100 kB into the same tokens."""
    text = asked.text.read_text("utf-8") if asked.text else mixed_text(100_000, 3)
    config = ModelConfig(
        arch="qwen3", vocab_size=2048, context=64, layers=1, heads=1, kv_heads=1, head_size=64,
        width=64, ff_width=64, tie_embeddings=True, dropout=0.0,
    )  # fmt: skip
    for pattern in PATTERNS:
        known = train_bpe(iter([mixed_text(400_000, 1)]), config.vocab_size, pattern)
        parts = TokenizerMeta(known.name, known.pattern).stored(known.to_text())
        Checkpoint(config, Transformer(config).state_dict(), parts, {}).save(folder / "cut.pt")
        write_gguf(load_model(folder / "cut.pt"), folder / "cut.gguf", "f32")
        llama = Llama(asked.python)
        llama.open(str(folder / "cut.gguf"), 1, False, 64)
        ours, theirs = known.encode(text.encode()), llama.tokenize(text)
        llama.close()
        equal = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None
        )
        told = "identical" if ours == theirs else f"DIFFERENT from token {equal} on"
        print(f"pattern {pattern}: {len(text.encode()):,} bytes, {len(ours):,} tokens: {told}")
        if equal is not None:
            print("  ours  ", [known.tokens[i] for i in ours[equal - 2 : equal + 6]])
            print("  theirs", [known.tokens[i] for i in theirs[equal - 2 : equal + 6]])


# Loss -----------------------------------------------------------------------------------------


@torch.no_grad()
def loss(checkpoint: Checkpoint, asked: argparse.Namespace, folder: Path) -> None:
    """Print bytes and mean loss a held-out token of both sides' files, over windows from scratch.

    The divergence from the float model says what a file changes with less noise than the loss.

    llama.cpp's tensor types are its own choice for a file type; ours are `asked.scheme`'s.
    """
    data = TokenData.load(asked.tokens)
    ids = np.concatenate([data.val, data.test]).astype(np.int64)
    window = min(PROMPT, checkpoint.config.context)
    rows = ids[: len(ids) // window * window].reshape(-1, window)

    def measured(logits_of: Callable[[list[int]], Tensor]) -> tuple[float, float]:
        """Nats a token, and the mean divergence from the float model's distributions."""
        nats = divergence = 0.0
        for row in rows:
            q = logits_of(row.tolist())[:-1].double().log_softmax(-1)
            p = reference(torch.from_numpy(row)[None])[0, :-1].double().log_softmax(-1)
            nats += F.nll_loss(q, torch.from_numpy(row[1:])).item()
            divergence += (p.exp() * (p - q)).sum(-1).mean().item()
        return nats / len(rows), divergence / len(rows)

    checkpoint.save(folder / "float.pt")
    files = {"float": folder / "float.pt", "f32": folder / "f32.gguf"}
    write_gguf(load_model(files["float"]), files["f32"], "f32")
    reference = checkpoint.build().eval()
    trial = Trials(checkpoint, data, Machine(torch.device("cpu"), "float32", 1), 0.005)
    for scheme in asked.scheme:
        files[scheme] = folder / f"{scheme}.pt"
        trial.quantized(scheme).save(files[scheme])
    llama = Llama(asked.python)
    for kind in RIVALS.values():
        files[kind] = folder / f"{kind}.gguf"
        llama.quantize(str(files["f32"]), str(files[kind]), kind)
    print(f"{rows.size:,} held-out tokens in windows of {window}")
    first = None
    for name, file in files.items():
        if file.suffix == ".pt":
            model = load_model(file).model
            value, kl = measured(lambda row, model=model: model(torch.tensor([row]))[0])
        else:
            llama.open(str(file), 1, False, window, True)

            def theirs(row: list[int]) -> Tensor:
                llama.logits(row, str(folder / "logits.npy"))
                return torch.from_numpy(np.load(folder / "logits.npy"))

            value, kl = measured(theirs)
        first = first or value
        print(
            f"{name:<14}{file.stat().st_size:>12,} bytes{value:>10.4f} nats/token"
            f"{100 * (value / first - 1):>+8.3f} %   KL {kl:.2e}",
            flush=True,
        )
    llama.close()


# Speed --------------------------------------------------------------------------------------------


def quantized_files(checkpoint: Checkpoint, folder: Path) -> dict[str, Path]:
    """Our quantized files, of the schemes there are."""
    files = {}
    for scheme in RIVALS:
        quantized = quantize_checkpoint(checkpoint, scheme)
        if any(isinstance(each, QuantizedWeight) for each in quantized.tensors.values()):
            files[scheme] = folder / f"{scheme}.pt"
            quantized.save(files[scheme])
    return files


def speed(name: str, checkpoint: Checkpoint, asked: argparse.Namespace, folder: Path) -> None:
    """Print medians over interleaved rounds, and ratios to the better llama.cpp."""
    checkpoint.save(folder / "float.pt")
    write_gguf(load_model(folder / "float.pt"), folder / "f32.gguf", "f32")
    files = quantized_files(checkpoint, folder)
    maker = Llama(asked.python)
    for scheme in files:
        out = folder / f"{RIVALS[scheme]}.gguf"
        maker.quantize(str(folder / "f32.gguf"), str(out), RIVALS[scheme])
        ours, theirs = files[scheme].stat().st_size, out.stat().st_size
        print(f"{name}: {scheme} file {ours:,} bytes, {out.stem} {theirs:,}: {ours / theirs:.3f}x")
    maker.close()
    for threads in asked.threads:
        torch.set_num_threads(threads)
        for scheme, file in files.items():
            rival = folder / f"{RIVALS[scheme]}.gguf"
            runners = {
                "ours": (Ours(fallback=False), file, True),
                "torch alone": (Ours(fallback=True), file, True),
                "llama.cpp, flash": (Llama(asked.python), rival, True),
                "llama.cpp, no flash": (Llama(asked.python), rival, False),
            }
            seconds = measured(runners, checkpoint, threads, asked.rounds)
            for runner, _, _ in runners.values():
                runner.close()
            print(f"\n{name}, {scheme} and {RIVALS[scheme]}, {threads} threads")
            print_table(seconds)


def measured(
    runners: dict[str, tuple[Any, Path, bool]], checkpoint: Checkpoint, threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Median seconds by quantity and runner."""
    size, context = checkpoint.config.vocab_size, checkpoint.config.context
    draw = random.Random(4)
    prompt = [draw.randrange(size) for _ in range(min(PROMPT, context - WRITTEN))]
    written = [draw.randrange(size) for _ in range(WRITTEN)]
    known = BytePairTokenizer.from_text(
        *(checkpoint.tokenizer[k] for k in ("vocabulary", "pattern", "name"))
    )
    text = known.decode(known.encode(mixed_text(20_000, 5).encode())[: len(prompt)])
    quantities = {
        "load, ms": lambda runner, path, flash: runner.open(str(path), threads, flash, context),
        "decode, tokens/s": lambda runner, *_: runner.decode(prompt[:16], written),
        f"decode after {len(prompt)}": lambda runner, *_: runner.decode(prompt, written),
        f"prefill {len(prompt)}, ms": lambda runner, *_: runner.prefill(prompt),
        "text to first token, ms": lambda runner, *_: runner.first(text.decode("utf-8", "ignore")),
    }
    taken: dict[str, dict[str, list[float]]] = {q: {r: [] for r in runners} for q in quantities}
    for number in range(rounds + 1):
        for quantity, measure in quantities.items():
            order = list(runners)
            draw.shuffle(order)
            for runner in order:
                taken[quantity][runner].append(measure(*runners[runner]))
        if not number:  # the first round warms up
            taken = {q: {r: [] for r in runners} for q in quantities}
    return {q: {r: statistics.median(s) for r, s in by.items()} for q, by in taken.items()}


def print_table(seconds: dict[str, dict[str, float]]) -> None:
    """A row a quantity; ratios are speeds, of ours to the better llama.cpp."""
    names = list(next(iter(seconds.values())))
    print(f"{'':<26}" + "".join(f"{name:>21}" for name in names) + f"{'ours/llama.cpp':>16}")
    for quantity, by in seconds.items():
        shown = [WRITTEN / s if "decode" in quantity else 1000 * s for s in by.values()]
        best = min(s for name, s in by.items() if name.startswith("llama.cpp"))
        row = "".join(f"{value:>21,.1f}" for value in shown)
        print(f"{quantity:<26}{row}{best / by['ours']:>15.2f}x")


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["parity", "speed"])
    parser.add_argument("--python", type=Path, required=True, help="of llama-cpp-python's venv")
    parser.add_argument("--checkpoint", type=Path, help="instead of the random shapes")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--text", type=Path, help="for parity, instead of random words")
    parser.add_argument("--tokens", type=Path, help="for loss: the tokens of the checkpoint")
    parser.add_argument("--scheme", nargs="+", default=["int4"], help="for loss: ours")
    asked = parser.parse_args()
    models = {name: lambda name=name: random_checkpoint(SHAPES[name]) for name in asked.shapes}
    if asked.checkpoint:
        models = {asked.checkpoint.name: lambda: Checkpoint.load(asked.checkpoint)}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if "parity" in asked.what:
            pattern_parity(asked, folder)
        for name, make in models.items():
            checkpoint = make()
            if "parity" in asked.what:
                parity(name, checkpoint, asked, folder)
            if "loss" in asked.what:
                loss(checkpoint, asked, folder)
            if "speed" in asked.what:
                speed(name, checkpoint, asked, folder)


if __name__ == "__main__":
    main()
