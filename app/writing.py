"""A visitor's requests and the texts written for them, kept as a tree of branches.

Plain data: nothing here draws or generates.
"""

import math
import shlex
from dataclasses import dataclass, field, replace

from stages.lm.inference.generation import (
    DEFAULT_LENGTH,
    DEFAULT_SEED,
    GeneratedToken,
    SamplingSettings,
)
from stages.lm.text.interface import Tokenizer

TOP_LOGPROBS = 5
"""Most likely tokens whose log-probabilities are kept at each position."""
MAX_RESULTS = 50
"""Results kept for a visitor; the oldest are dropped first."""


@dataclass(frozen=True)
class Request:
    """What the model is to write."""

    prompt: str
    length: int
    sequences: int
    sampling: SamplingSettings
    seed: int
    written: tuple[int, ...] = ()
    """Ids of the tokens that already follow the prompt, to be continued."""
    first: int = 1
    """Number of the first sequence: alone, the third of four is written as it was among them."""

    def indices(self) -> range:
        """What makes the random numbers of each sequence its own."""
        return range(self.first - 1, self.first - 1 + self.sequences)


@dataclass
class Result:
    """A request and what has been written for it so far."""

    request: Request
    model: str
    tokenizer: Tokenizer
    """The model's: its file may hold another one later."""
    steps: list[list[GeneratedToken]]
    """A list of tokens for each sequence."""
    label: str
    """`1.2` is the second branch of `1`."""
    lead: str
    """Shown before the new text: the prompt, and what already followed it."""
    parent: "Result | None" = None
    first_seconds: float = 0.0
    """Time to the first token."""
    seconds: float | None = None
    """Time of the whole generation; None while it runs or where it was stopped."""

    def texts(self) -> list[str]:
        """The new text of each sequence."""
        return ["".join(step.text for step in steps) for steps in self.steps]

    def tokens(self) -> int:
        """Number of tokens of all sequences together."""
        return sum(map(len, self.steps))


@dataclass
class History:
    """A visitor's results, which form a tree, and the one that is shown."""

    results: list[Result] = field(default_factory=list)
    shown: Result | None = None

    def begin(
        self, request: Request, model: str, tokenizer: Tokenizer, lead: str, parent: Result | None
    ) -> Result:
        """Add an empty result and show it; with a `parent` it is a branch of that one."""
        siblings = [each for each in self.results if each.parent is parent]
        number = 1 + max((int(each.label.rpartition(".")[2]) for each in siblings), default=0)
        label = f"{parent.label}.{number}" if parent else str(number)
        steps: list[list[GeneratedToken]] = [[] for _ in range(request.sequences)]
        self.shown = Result(request, model, tokenizer, steps, label, lead, parent)
        self.results = [*self.results, self.shown][-MAX_RESULTS:]
        return self.shown

    def undo(self) -> None:
        """Drop the result that is shown; show its parent instead, or else the latest."""
        if self.shown is None:
            return
        self.results.remove(self.shown)
        parent = self.shown.parent
        latest = self.results[-1] if self.results else None
        self.shown = parent if parent in self.results else latest

    def tree(self) -> list[Result]:
        """All results, each before its branches."""
        return sorted(
            self.results, key=lambda each: [int(number) for number in each.label.split(".")]
        )


def go_on(result: Result, sequence: int, count: int, asked: Request) -> Request:
    """`asked`, but to continue the first `count` tokens of a sequence of `result`."""
    before = result.request
    new = (step.token for step in result.steps[sequence][:count])
    return replace(
        asked,
        prompt=before.prompt,
        sequences=1,
        written=(*before.written, *new),
        first=before.first + sequence,
    )


def in_vocabulary(tokenizer: Tokenizer, parent: Result, request: Request) -> Request:
    """`request`, which continues `parent`, with the ids that `tokenizer` has for these tokens.

    In another vocabulary than the parent's, the same bytes may be other tokens.
    """
    if tokenizer.tokens == parent.tokenizer.tokens:
        return request
    data = parent.tokenizer.decode(request.written)
    return replace(request, written=tuple(tokenizer.encode(data)))


@dataclass(frozen=True)
class Alternative:
    """A possible token and its probabilities: the model's, and after the samplers."""

    token: int
    before: float
    after: float


def alternatives(step: GeneratedToken) -> list[Alternative]:
    """The most likely tokens at a step's position and the one chosen, most likely first."""
    assert step.before and step.after, "generated without log-probabilities"
    before = dict(step.before.top) | {step.token: step.before.chosen}
    after = dict(step.after.top) | {step.token: step.after.chosen}
    return [
        Alternative(token, math.exp(logprob), math.exp(after.get(token, -math.inf)))
        for token, logprob in sorted(before.items(), key=lambda item: -item[1])
    ]


def command(result: Result, model: str, default_model: str) -> str:
    """The shell command that writes the same texts; options at their defaults are left out."""
    request, sampling, defaults = result.request, result.request.sampling, SamplingSettings()
    options = {
        "--written": (",".join(map(str, request.written)), ""),
        "--length": (request.length, DEFAULT_LENGTH),
        "--sequences": (request.sequences, 1),
        "--first": (request.first, 1),
        "--temperature": (sampling.temperature, defaults.temperature),
        "--top-k": (sampling.top_k, defaults.top_k),
        "--top-p": (sampling.top_p, defaults.top_p),
        "--min-p": (sampling.min_p, defaults.min_p),
        "--repetition-penalty": (sampling.repetition_penalty, defaults.repetition_penalty),
        "--cache": (sampling.cache, defaults.cache),
        "--seed": (request.seed, DEFAULT_SEED),
        "--model": (model, default_model),
    }
    words = ["python", "-m", "app.generate"]
    for name, (value, default) in options.items():
        if value != default:
            words += [name, str(value)]
    for stop in sampling.stop:
        words.append("--stop=" + stop.replace("\n", "\\n"))
    # After "--" a prompt that begins with a dash is not taken for an option.
    words += ["--"] if request.prompt.startswith("-") else []
    return shlex.join([*words, request.prompt.replace("\\n", "\\\\n")])
