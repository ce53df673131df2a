"""Any text and any settings work, or are refused with one sentence and no file changed.

    python tests/benchmarks/fuzz.py texts --count 2000
    python tests/benchmarks/fuzz.py settings
    python tests/benchmarks/fuzz.py large --bytes 2000000000    # three times as much room on disk

`texts`: `corpus`, `tokenize` and one step of `train` on generated texts. Held is a step taken from
tokens that decode to the text, or a sentence (`UserError`, one line). `settings`: every key of
`params.yaml` removed, of other types, out of range and absurd. Held is a sentence of `corpus` that
names the key, and every file as it was. `large`: time and peak memory of each stage, from
`/proc`, for a text of lines and for one without an end of line; the memory includes about 300 MB
that Python and torch take. "anonymous" leaves out what is mapped from files, which the system can
take back at any time.
"""

import argparse
import dataclasses
import hashlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

import torch
import yaml
from isolation import held, run_isolated

from stages import corpus, tokenize_text, train
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.data.dataset import TokenData
from stages.lm.data.splits import SPLITS
from stages.lm.sources.encodings import recoded, wide_encoding
from stages.lm.text.stored_tokenizer import load_tokenizer
from stages.sample_text import sample_text

SMALL = {
    "tokenize": {"vocab_size": 320},
    "model": {"layers": 1, "heads": 2, "width": 16, "context": 16, "init": "bigrams"},
    "train": {"epochs": 1, "precision": "float32"},
    "runtime": {"threads": 1, "checkpoint_steps": 0},
}


class StopAtOnce:
    """Ends training after its first step, as a signal would."""

    number = 15

    def requested(self) -> bool:
        return True


@contextmanager
def project(folder: Path) -> Iterator[Path]:
    """Have the stages work in `folder`, with small settings; gives the path of `params.yaml`."""
    params = folder / "params.yaml"
    document = yaml.safe_load(paths.PARAMS.read_text("utf-8"))
    for section, values in SMALL.items():
        document[section] |= values
    params.write_text(yaml.safe_dump(document, sort_keys=False), "utf-8")
    with ExitStack() as stack:
        root = paths.ROOT
        for name, path in list(vars(paths).items()):
            if name.isupper():
                stack.enter_context(mock.patch.object(paths, name, folder / path.relative_to(root)))
        for module in (corpus, tokenize_text, train):
            for name in {"automatic", "load_init_from", "load_section", "load_sections"} & set(
                vars(module)
            ):
                reader = partial(getattr(module, name), path=params)
                stack.enter_context(mock.patch.object(module, name, reader))
        stack.enter_context(mock.patch.object(train, "StopSignal", StopAtOnce))
        paths.DATA.mkdir(exist_ok=True)
        yield params


def silently(function: Callable[[], Any]) -> Any:
    """Call a function with its output discarded."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return function()


# Texts --------------------------------------------------------------------------------------------

WORDS = ["the", "model's", "12345", "words,", "WE'RE", "naïve...", "模型", "学习", "🙂👩\u200d👧"]
WORDS += ["e\u0301", "שלום", "مرحبا", "<|endoftext|>", "\u2028", "\u3000", ""]


def some_text(draw: random.Random, size: int) -> bytes:
    """A text of about `size` bytes, of one of many kinds."""

    def characters(low: int, high: int) -> bytes:
        codes = (draw.randrange(low, high) for _ in range(size // 3 + 1))
        return "".join(map(chr, codes)).encode("utf-8", "surrogatepass")

    def joined(end: str) -> bytes:
        return end.join(draw.choice(WORDS) for _ in range(size // 6 + 1)).encode()

    kinds: list[Callable[[], bytes]] = [
        lambda: draw.randbytes(size),
        lambda: bytes([draw.randrange(256)]) * size,
        lambda: draw.randbytes(draw.randrange(1, 9)) * (size // 4 + 1),
        lambda: bytes(draw.choices(b" \t\n\r\x0b\x0c\x1c\0", k=size)),
        lambda: bytes(draw.choices(b" \n", k=size)) + b"x",
        lambda: characters(0xD800, 0xE000),  # lone surrogates
        lambda: characters(0x20, 0x110000),
        lambda: characters(0x300, 0x370),  # combining marks
        lambda: characters(0x80, 0x800),
        lambda: joined(" "),  # an endless line
        lambda: joined(""),
        lambda: joined("\n"),
        lambda: joined("\r"),
        lambda: joined("\r\n\r\n"),
        lambda: joined("\0"),
        lambda: b"\xef\xbb\xbf" * draw.randrange(1, 4) + joined(" "),
        lambda: joined("\n").decode().encode(draw.choice(["utf-16", "utf-32", "utf-7"])),
        lambda: joined(" ")[1:-1].replace(b"\xe6", b""),
        lambda: b"a" * size + b" " + b"b" * size,
        lambda: str(draw.randrange(10 ** min(size, 4000))).encode(),
    ]
    return draw.choice(kinds)()


def text_number(number: int, seed: int) -> bytes:
    """The `number`-th text: mostly small ones, some of up to 1 MB, some of set kinds."""
    draw = random.Random(f"{seed} {number}")
    chosen = [
        b"",
        b"\n",
        "".join(map(chr, [*range(0x20, 0xD800), *range(0x10000, 0x1B000)])).encode(),
    ]
    if number < len(chosen):
        return chosen[number]
    if number < len(chosen) + 256:
        return bytes([number - len(chosen)])
    large = number % 40 == 0
    return some_text(draw, int(10 ** draw.uniform(4 if large else 1.8, 6 if large else 3.8)))


def as_read(text: bytes) -> bytes:
    """The text that a file with these bytes holds: UTF-8 for UTF-16 and 32, the sample for none."""
    encoding = wide_encoding(text)
    return b"".join(recoded([text], encoding, "")) if encoding else text or sample_text().encode()


def text_case(folder: Path, seed: int, number: int) -> str:
    """The outcome for a text."""
    text = text_number(number, seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with project(folder):
        (paths.DATA / "input.txt").write_bytes(text)
        result = "trained"
        try:
            for main in (corpus.main, tokenize_text.main, train.main):
                silently(main)
            data = TokenData.load(paths.TOKENS)
            tokenizer = load_tokenizer(data.meta.tokenizer.stored(data.vocabulary))
            ids = [token for split in SPLITS for token in getattr(data, split).tolist()]
            if tokenizer.decode(ids) != as_read(text):
                return "FAILED: the tokens are not the text"
            if not list(paths.ROOT.glob("models/resume/*/state.pt")):
                return "FAILED: no step was saved"
        except UserError as error:
            result = "refused"
            if "\n" in str(error) or len(str(error)) > 1000:
                return f"FAILED: {error!s:.200} is no sentence"
        return (
            result
            if (paths.DATA / "input.txt").read_bytes() == text
            else "FAILED: the text was changed"
        )


# Settings -----------------------------------------------------------------------------------------

ABSURD = [
    *["null", "[]", "{}", "[1]", "{a: 1}", "2001-01-01", "2001-99-99", "2001-01-01 99:99:99"],
    *["!!python/object/apply:os.system [true]", "!!int x", "!!float x", "!!binary x", "!!bool x"],
    *[
        "!!timestamp x",
        "!!set {a}",
        "!!omap [a]",
        "&a [*a]",
        "*b",
        "? [a]",
        "'",
        '"',
        "@",
        "%",
        "|",
    ],
    *[
        '"\\ud800"',
        '"\\0"',
        ".nan",
        "-.inf",
        "1e400",
        "-1",
        "-0.0001",
        "1" * 5000,
        "0x" + "f" * 5000,
    ],
    *["0b", "0o8", "0x", "[" * 5000, "{a: " * 2000, "x" * 1_000_000, "☃" * 1000],
    *["true and false", "12.5.6", "<<", "~", "=", "[&a [x, x], &b [*a, *a], [*b, *b]]", "\t", "\0"],
    "[" + ", ".join(f"&a{n + 1} [*a{n}, *a{n}]" if n else "&a1 [x]" for n in range(40)) + "]",
]


ANY_TEXT = {"evaluate.prompt", "evaluate.also", "corpus.text", "corpus.completion"}
"""Settings that may be any text. `corpus.prompt` needs `corpus.completion` beside it."""


def settings_cases() -> list[tuple[str, str, str | None]]:
    """Sections, keys and what stands there in YAML; None removes the key."""
    cases: list[tuple[str, str, str | None]] = []
    for cls in corpus.SECTIONS:
        hints = get_type_hints(cls, include_extras=True)
        for field in dataclasses.fields(cls):
            kind, limits = (
                getattr(hints[field.name], "__origin__", hints[field.name]),
                getattr(hints[field.name], "__metadata__", (None,))[0],
            )
            values: list[str | None] = [None, *ABSURD]
            if kind is not str:
                values += ["yes please", '""'] if kind is bool else ["fast", '""', "true"]
            if kind is int:
                values += [str(limits.low - 1), str(int(limits.high) + 1), "1.5", "1e300"]
            if kind is float:
                values += [str(limits.low - 1e-9), str(limits.high * 1.001 + 1e-9), "1e300"]
            if kind in (str, bool):
                values += ["5", "1.5"]
            if limits and kind is str:
                values += ["Auto", "none", '""']
            cases += [(cls.SECTION, field.name, value) for value in values]
    cases += [("recipe", "", value) for value in [None, *ABSURD, "5", "Quick", "auto"]]
    cases += [("init_from", "", value) for value in [None, *ABSURD, "5", "nothing", "../x", "x.pt"]]
    cases += [(cls.SECTION, "", value) for cls in corpus.SECTIONS for value in [None, *ABSURD, "5"]]
    return cases


def settings_case(folder: Path, cases: list[tuple[str, str, str | None]], number: int) -> str:
    """The outcome of `corpus` for a setting."""
    section, key, raw = cases[number]
    if not folder.exists():
        folder.mkdir()
        for name in ("data/input.txt", "models/tokens/train.npy", "models/checkpoint.pt"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text("as it was, line after line\n" * 20)
        (folder / "data" / "base").mkdir()
    with project(folder) as params:
        document = yaml.safe_load(params.read_text("utf-8"))
        values, name = (document[section], key) if key else (document, section)
        values[name] = "PLACE"
        if raw is None:
            del values[name]
        written = yaml.safe_dump(document, sort_keys=False).replace("PLACE", raw or "")
        params.write_bytes(written.encode())
        before = digests(folder)
        try:
            silently(corpus.main)
        except UserError as error:
            message = str(error)
        else:
            free = f"{section}.{key}" in ANY_TEXT
            return "any text" if free else f"FAILED: {section}.{key} may be {raw!r:.40}"
    if "\n" in message or len(message) > 2200 or "params.yaml" not in message:
        return f"FAILED: {message:.200} is no sentence"
    named = (f"{section}.{key}" if key else section) in message or "not readable as YAML" in message
    if not named or digests(folder) != before:
        return f"FAILED: {message:.200} {'does not name the key' if not named else 'cost a file'}"
    return "refused"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Large texts --------------------------------------------------------------------------------------


def write_large(path: Path, size: int, end: str) -> None:
    """A text of `size` bytes of made-up words in sentences, with `end` after each."""
    draw = random.Random(1)
    words = [
        "".join(draw.choices("etaoinshrdlucmfw", k=draw.randrange(2, 10))) for _ in range(50_000)
    ]
    words += WORDS * 50
    with path.open("wb") as file:
        while file.tell() < size:
            block = (" ".join(draw.choices(words, k=15)) + "." + end for _ in range(1000))
            file.write("".join(block).encode())
        file.truncate(size)


def measured(function: Callable[[], Any]) -> str:
    """Seconds and peak memory of a call in a process of its own."""
    began, anonymous, peak = time.monotonic(), 0, 0
    worker = os.fork()
    if not worker:
        try:
            silently(function)
            os._exit(0)
        except BaseException as error:
            print(f"FAILED: {error}", file=sys.__stdout__, flush=True)
            os._exit(1)
    while not os.waitpid(worker, os.WNOHANG)[0]:
        lines = Path(f"/proc/{worker}/status").read_text().splitlines()
        figures = {line.split()[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}
        anonymous = max(anonymous, figures.get("RssAnon:", 0))
        peak = max(peak, figures.get("VmHWM:", 0))
        time.sleep(0.02)
    seconds = time.monotonic() - began
    return f"{seconds:7.1f} s, at most {peak / 1000:,.0f} MB ({anonymous / 1000:,.0f} anonymous)"


def large(folder: Path, size: int) -> None:
    """Measure each stage on a text of lines, and on one of a single line."""
    for kind, end in (("lines", "\n"), ("one line", " ")):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        with project(folder):
            write_large(paths.DATA / "input.txt", size, end)
            for main in (corpus.main, tokenize_text.main, train.main):
                name = main.__module__.removeprefix("stages.")
                print(f"{size:,} bytes of {kind}, {name}: {measured(main)}", flush=True)
            tokens = sum(path.stat().st_size for path in paths.TOKENS.glob("*.npy"))
            print(f"{size:,} bytes of {kind}: tokens take {tokens:,} bytes", flush=True)


def main() -> None:
    """Print the number of cases tried and held, or the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("texts", "settings", "large"))
    parser.add_argument("--count", type=int, default=2000, help="texts")
    parser.add_argument("--bytes", type=int, default=2_000_000_000, help="size of the large text")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        if asked.what == "texts":
            case = partial(text_case, folder, asked.seed)
            print(f"texts: {held(run_isolated(asked.count, case, seconds=120, memory=4 << 30))}")
        elif asked.what == "settings":
            cases = settings_cases()
            case = partial(settings_case, folder, cases)
            print(f"settings: {held(run_isolated(len(cases), case, seconds=30))}")
        else:
            large(folder, asked.bytes)


if __name__ == "__main__":
    main()
