"""The page's text in a terminal: `python -m app.generate "Once upon a time"`.

The same prompt, settings and seed give the same text as the page, to the last character.
"""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m app.generate`")

import argparse
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import tee
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_errors
from stages.lm.core.stage import Parser, run_stage
from stages.lm.inference.chatting import replies
from stages.lm.inference.generation import (
    DEFAULT_LENGTH,
    DEFAULT_SEED,
    SAMPLER_VALUES,
    GeneratedToken,
    SamplingSettings,
    TokenLogprobs,
    WrittenText,
    generate_steps,
    text_ids,
)
from stages.lm.inference.loading import LoadedModel, load_model

BATCH = 16
"""Sequences written together; each has keys and values in memory."""


def number(kind: type[int] | type[float], low: int, high: int) -> Callable[[str], float]:
    """A reader of numbers from `low` to `high`."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) <= high:
                return value
        noun = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{text!r} must be {noun} from {low:,} to {high:,}")

    return read


class PromptParser(Parser):
    """Says how to give a prompt of several words, or one that looks like an option."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError`."""
        if "unrecognized arguments: -" in message or "ignored explicit argument" in message:
            message += f". A prompt with a dash in front comes after --: `{self.prog} -- -x`"
        elif "unrecognized arguments" in message:
            message += f'. A prompt of several words stands in quotes: `{self.prog} "a b"`'
        super().error(message)


def parser() -> Parser:
    """The arguments; defaults are the page's."""
    made = PromptParser(
        prog="python -m app.generate",
        description="Continue a prompt with the trained model, or answer it where it was trained "
        "on records, in text that appears as it comes.",
    )
    made.add_argument(
        "prompt",
        nargs="?",
        type=with_new_lines,
        help="beginning of the text, or what is to be answered; \\n stands for a new line, \\\\n "
        "for these two characters. Empty starts on a new line. Without a prompt, a pipe is read",
    )
    made.add_argument(
        "--prompt-file",
        type=Path,
        help="a file that holds the prompt instead, or - for standard input; as it is, but without "
        "one new line at its end",
    )
    chat = "answer line by line; the prompt is the system message, an empty line begins anew"
    made.add_argument("--chat", action="store_true", help=chat)
    made.add_argument(
        "--written",
        type=token_ids,
        default=(),
        help="ids of the tokens that already follow the prompt, to be continued: 12,7,300, as the "
        "page prints them",
    )
    made.add_argument(
        "--length",
        type=number(int, 1, 100_000),
        default=DEFAULT_LENGTH,
        help="tokens that are added (%(default)s)",
    )
    made.add_argument(
        "--sequences",
        type=number(int, 1, 1000),
        default=1,
        help="independent texts from the same prompt (%(default)s)",
    )
    made.add_argument(
        "--first",
        type=number(int, 1, 1_000_000),
        default=1,
        help="number of the first text: 3 begins with what would be the third (%(default)s)",
    )
    add_sampling(made)
    made.add_argument(
        "--logprobs",
        type=number(int, 0, 1000),
        help="after each text, a line for each of its tokens: the natural logarithm of its "
        "probability, and so many of the likeliest tokens with theirs, from the model | after the "
        "samplers",
    )
    made.add_argument(
        "--model",
        type=Path,
        default=paths.QUANTIZED,
        help=f"a model file ({paths.shown(paths.QUANTIZED)}), or {paths.shown(paths.CHECKPOINT)}",
    )
    return made


def add_sampling(made: Parser) -> None:
    """Add the arguments that say how tokens are chosen, and where the text stops."""
    for name, value in SAMPLER_VALUES.items():
        low, high = value.metadata["low"], value.metadata["high"]
        made.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(int if isinstance(value.default, int) else float, low, high),
            default=value.default,
            help=f"{value.metadata['help']} Default: %(default)s",
        )
    made.add_argument(
        "--stop",
        type=stop_string,
        action="append",
        default=[],
        help=r"the text ends before this string; \n stands for a new line; may be given repeatedly",
    )
    made.add_argument(
        "--seed",
        type=number(int, 0, 2**31 - 1),
        default=DEFAULT_SEED,
        help="the same seed gives the same text (%(default)s)",
    )


def token_ids(text: str) -> tuple[int, ...]:
    """The numbers of a list with commas; none in an empty text."""
    try:
        return tuple(map(int, text.split(","))) if text else ()
    except ValueError:
        message = f"{text[:40]!r} must be token ids with commas between them, such as 12,7,300"
        raise argparse.ArgumentTypeError(message) from None


def stop_string(text: str) -> str:
    """A string that is not empty, its line ends written out."""
    if not text:
        raise argparse.ArgumentTypeError("'' would stop before the first token; give a string")
    return with_new_lines(text)


def with_new_lines(text: str) -> str:
    r"""`text` with a new line for each `\n`, and `\n` for each `\\n`."""
    return re.sub(r"(\\?)\\n", lambda found: r"\n" if found[1] else "\n", text)


def read_prompt(asked: argparse.Namespace) -> str:
    """The prompt that was given, or the content of its file or of a pipe; else nothing.

    Raises:
        UserError: there are two, or the file cannot be read or is not UTF-8.
    """
    file: Path | None = asked.prompt_file
    if asked.prompt is not None:
        if file:
            raise UserError(f"--prompt-file {file} and a prompt are given; leave one of them out.")
        return str(asked.prompt)
    if not file and not is_piped():
        return ""
    piped = file in (None, Path("-"))
    source = Path("standard input") if piped or not file else file
    with (
        read_errors(source, "name the file that holds the prompt."),
        open(0 if piped else source, "rb", closefd=not piped) as opened,
    ):
        data = opened.read()
    try:
        return data.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"the prompt in {paths.shown(source)} is not UTF-8 (byte {error.start + 1:,} is "
            "none of it); save it in that encoding."
        ) from None


def is_piped() -> bool:
    """Whether standard input is a pipe or a file, rather than a terminal or nothing."""
    try:
        mode = os.fstat(0).st_mode
    except OSError:  # it is closed
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def warn_of_dropped(loaded: LoadedModel, prompt: str) -> None:
    """Say on standard error which part of a prompt does not fit the model's context."""
    ids, context = text_ids(loaded, prompt), loaded.config.context
    if len(ids) > context:
        seen = loaded.tokenizer.decode(ids[-(context // 2) :]).decode("utf-8", "replace")
        print(
            f"note: the prompt has {len(ids):,} tokens, but the model's context {context:,}: the "
            f"first {len(ids) - context // 2:,} are dropped, and it sees from {seen[:40]!r}... on.",
            file=sys.stderr,
        )


def sequences(
    loaded: LoadedModel, asked: argparse.Namespace, sampling: SamplingSettings
) -> Iterator[tuple[int, Iterator[GeneratedToken]]]:
    """Each sequence's number and steps: the first of a batch as it comes, the others after it."""
    every = range(asked.first - 1, asked.first - 1 + asked.sequences)
    for start in range(0, asked.sequences, BATCH):
        indices = every[start : start + BATCH]
        rows = generate_steps(
            loaded, asked.prompt, asked.length, sampling, asked.seed, indices, asked.logprobs,
            asked.written,
        )  # fmt: skip
        for offset, copy in enumerate(tee(rows, len(indices))):
            yield indices[offset] + 1, filter(None, map(itemgetter(offset), copy))


def logprobs_line(loaded: LoadedModel, step: GeneratedToken) -> str:
    """One line: a token and its log-probabilities before and after the samplers."""

    def told(logprobs: TokenLogprobs | None) -> str:
        assert logprobs is not None
        named = [f"{loaded.tokenizer.shown(i)!r} {log:.4f}" for i, log in logprobs.top]
        return "  ".join([f"{logprobs.chosen:.4f}", *named])

    return f"{loaded.tokenizer.shown(step.token)!r}  {told(step.before)}  |  {told(step.after)}\n"


def main(arguments: list[str] | None = None) -> int:
    """Write the texts to standard output; returns the exit code."""
    asked = parser().parse_args(arguments)
    asked.prompt = (asked.prompt or "") if asked.chat else read_prompt(asked)
    values = {name: getattr(asked, name) for name in SAMPLER_VALUES}
    sampling = SamplingSettings(**values, stop=tuple(asked.stop))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # The model may write any character, whatever the terminal's encoding is.
        sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    loaded = load_model(asked.model)
    if asked.chat:
        for piece in replies(loaded, sys.stdin, asked.prompt, asked.length, sampling, asked.seed):
            print(piece, end="", flush=True)
        return 0
    start = WrittenText(loaded, sampling, asked.written).start
    warn_of_dropped(loaded, asked.prompt)
    try:
        for sequence, steps in sequences(loaded, asked, sampling):
            if asked.sequences > 1:
                print(f"--- {sequence} of {asked.first + asked.sequences - 1} ---")
            # An answer is all that is wanted of a model that was trained on records.
            print("" if loaded.answers else asked.prompt, end=start, flush=True)
            taken = []
            for step in steps:
                print(step.text, end="", flush=True)
                taken.append(step)
            print(flush=True)
            if asked.logprobs is not None:
                print("".join(logprobs_line(loaded, step) for step in taken), end="", flush=True)
    except OSError as error:
        # What Python still holds goes nowhere, or it would complain when it leaves.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The reader of a broken pipe (`head`, a closed pager) has all it wants.
        if not isinstance(error, BrokenPipeError):
            raise UserError(
                f"the text could not be written ({error.strerror}); write it elsewhere."
            ) from error
    except KeyboardInterrupt:
        print(flush=True)
        raise
    return 0


if __name__ == "__main__":
    run_stage(main, unread=("stderr",))
