"""What was asked of the model and what it wrote: texts, and the branches between them.

Knows nothing about the page.
"""

import math
import shlex
from dataclasses import dataclass, field

from stages.lm.inference.generation import (
    DEFAULT_LENGTH,
    DEFAULT_SEED,
    GeneratedToken,
    SamplingSettings,
)

LIKELIEST = 5
"""Tokens whose odds are kept beside each that was chosen."""
KEPT = 50
"""Results of one visitor; the oldest go first."""


@dataclass(frozen=True)
class Request:
    """What the widgets ask for."""

    prompt: str
    length: int
    sequences: int
    sampling: SamplingSettings
    seed: int
    written: str = ""
    """What already follows the prompt."""


@dataclass
class Result:
    """A request and what has been written for it so far."""

    request: Request
    model: str
    steps: list[list[GeneratedToken]]
    """Of each sequence."""
    label: str
    """`1.2` is the second branch of `1`."""
    lead: str
    """What is shown before what was written: the prompt, and what already followed it."""
    parent: "Result | None" = None
    first_seconds: float = 0.0
    """Until the first token."""
    seconds: float | None = None
    """Time the whole of it took; None until then."""

    def texts(self) -> list[str]:
        """What follows the prompt, of each sequence."""
        return ["".join(step.text for step in steps) for steps in self.steps]

    def tokens(self) -> int:
        """Of all sequences together."""
        return sum(map(len, self.steps))


@dataclass
class History:
    """A visitor's results: a tree, and the one that is shown."""

    results: list[Result] = field(default_factory=list)
    shown: Result | None = None

    def begin(self, request: Request, model: str, lead: str, parent: Result | None) -> Result:
        """A new result, shown from now on; the branch of another where there is a `parent`."""
        siblings = [each for each in self.results if each.parent is parent]
        number = 1 + max((int(each.label.rpartition(".")[2]) for each in siblings), default=0)
        label = f"{parent.label}.{number}" if parent else str(number)
        steps: list[list[GeneratedToken]] = [[] for _ in range(request.sequences)]
        self.shown = Result(request, model, steps, label, lead, parent)
        self.results = [*self.results, self.shown][-KEPT:]
        return self.shown

    def undo(self) -> None:
        """Drop what is shown; what it came from is shown instead, or else the latest."""
        if self.shown is None:
            return
        self.results.remove(self.shown)
        parent = self.shown.parent
        latest = self.results[-1] if self.results else None
        self.shown = parent if parent in self.results else latest

    def tree(self) -> list[Result]:
        """Every result, each before its branches."""
        return sorted(
            self.results, key=lambda each: [int(number) for number in each.label.split(".")]
        )


def written_before(result: Result, sequence: int, place: int) -> str:
    """What follows the prompt before a sequence's token number `place`."""
    return result.request.written + "".join(step.text for step in result.steps[sequence][:place])


@dataclass(frozen=True)
class Alternative:
    """A token that could have come, and its probabilities from the model and after the samplers."""

    token: int
    before: float
    after: float


def alternatives(step: GeneratedToken) -> list[Alternative]:
    """The tokens likeliest in a step's place, and its own, the likeliest first."""
    assert step.before and step.after, "the odds were not asked for"
    before = dict(step.before.top) | {step.token: step.before.chosen}
    after = dict(step.after.top) | {step.token: step.after.chosen}
    return [
        Alternative(token, math.exp(log), math.exp(after.get(token, -math.inf)))
        for token, log in sorted(before.items(), key=lambda item: -item[1])
    ]


def command(result: Result, model: str, default_model: str) -> str:
    """What writes the same texts in a terminal."""
    request, sampling, usual = result.request, result.request.sampling, SamplingSettings()
    given = {
        "--written": (request.written, ""),
        "--length": (request.length, DEFAULT_LENGTH),
        "--sequences": (request.sequences, 1),
        "--temperature": (sampling.temperature, usual.temperature),
        "--top-k": (sampling.top_k, usual.top_k),
        "--top-p": (sampling.top_p, usual.top_p),
        "--min-p": (sampling.min_p, usual.min_p),
        "--repetition-penalty": (sampling.repetition_penalty, usual.repetition_penalty),
        "--seed": (request.seed, DEFAULT_SEED),
        "--model": (model, default_model),
    }
    words = ["python", "-m", "app.generate"]
    for name, (value, default) in given.items():
        if value != default:
            words += [name, str(value)]
    for stop in sampling.stop:
        words.append("--stop=" + stop.replace("\n", "\\n"))
    # What follows two dashes is no option, whatever it begins with.
    return shlex.join([*words, *(["--"] if request.prompt.startswith("-") else []), request.prompt])
