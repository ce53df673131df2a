"""Decoding: a prompt in, texts out, token by token, from a model with a key/value cache.

The app, the terminal and evaluate all generate through here, so the same call gives the same
text everywhere, alone or beside others.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import UserError
from ..text.records import PROMPT_END, RECORD_END
from .decoder import make_decoder
from .loading import LoadedModel
from .samplers import (
    StopStrings,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
    scale_temperature,
)

DEFAULT_LENGTH = 200
"""Tokens that the page and the terminal write unless told otherwise."""
DEFAULT_SEED = 1337


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a token is chosen from the logits, and where the text stops."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens only; 0 is off."""
    top_p: float = 0.95
    """Choose among the fewest tokens whose probabilities reach this sum; 1 is off."""
    min_p: float = 0.0
    """Choose among the tokens at least this many times as likely as the likeliest; 0 is off."""
    repetition_penalty: float = 1.0
    """Makes every token of the prompt and the text so far less likely to come again; 1 is off."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these to appear in it."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of probabilities at one place in a text."""

    chosen: float
    """Of the token that was chosen."""
    top: list[tuple[int, float]]
    """Token ids and theirs, likeliest first; impossible ones left out."""


@dataclass(frozen=True)
class GeneratedToken:
    """A token that was added to a text."""

    token: int
    data: bytes
    """The token's bytes."""
    text: str
    """What the text grew by. A character that comes in several tokens is held back until it is
    whole (broken ones become U+FFFD), and so is what may still become a stop string."""
    before: TokenLogprobs | None = None
    """As the model gave them; None unless asked for."""
    after: TokenLogprobs | None = None
    """As the samplers left them."""


def sampled_logits(logits: Tensor, settings: SamplingSettings, seen: Tensor | None) -> Tensor:
    """Float64 logits (V,) that a token is drawn from; `seen` (V,) marks the tokens so far.

    Repetition penalty, temperature, top-k, top-p, min-p: transformers' order.
    """
    if seen is not None:
        logits = penalise_repetition(logits, seen, settings.repetition_penalty)
    logits = scale_temperature(logits, settings.temperature)
    if settings.temperature == 0:
        return logits
    logits = keep_top_p(keep_top_k(logits, settings.top_k), settings.top_p)
    return keep_min_p(logits, settings.min_p)


def sequence_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of the `index`-th sequence, whatever their number."""
    # Two small numbers become one seed through SplitMix64's odd constant, so that (1, 0) and
    # (0, 1) differ.
    return torch.Generator().manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)


class SequenceState:
    """One sequence of a batch: chooses its tokens and turns them into text."""

    def __init__(
        self, loaded: LoadedModel, prompt: list[int], settings: SamplingSettings, seed: int, i: int
    ) -> None:
        self.known = loaded.tokenizer.tokens
        self.settings = settings
        self.generator = sequence_generator(seed, i)
        self.stops = StopStrings(settings.stop, RECORD_END if loaded.answers else b"")
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.seen = None
        if settings.repetition_penalty != 1:
            self.seen = torch.zeros(len(self.known), dtype=torch.bool)
            self.seen[prompt] = True

    def step(self, logits: Tensor, last: bool, likeliest: int | None) -> GeneratedToken:
        """Choose a token from logits (V,)."""
        # On the CPU in float64: the same draw on every device and with any number of threads.
        given = logits.double().cpu()
        left = sampled_logits(given, self.settings, self.seen)
        token = draw(left, self.generator)
        if self.seen is not None:
            self.seen[token] = True
        data = self.stops.feed(self.known[token])
        final = last or self.stops.met
        text = self.characters.decode(data + self.stops.held * final, final)
        odds = (
            None if likeliest is None else logprobs_of(x, token, likeliest) for x in (given, left)
        )
        return GeneratedToken(token, self.known[token], text, *odds)


def logprobs_of(logits: Tensor, token: int, likeliest: int) -> TokenLogprobs:
    """The log-probability that logits (V,) give `token`, and those of the likeliest tokens."""
    # Not logsumexp: of a vocabulary it is slower, and keeps every thread of torch busy.
    logs = logits.log_softmax(dim=-1)
    top = logs.topk(min(likeliest, logs.numel()))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(logs[token].item(), [(i, log) for i, log in pairs if log > float("-inf")])


def generate_steps(
    loaded: LoadedModel,
    prompt: str,
    count: int,
    settings: SamplingSettings,
    seed: int,
    indices: Sequence[int] = (0,),
    likeliest: int | None = None,
    written: str = "",
) -> Iterator[list[GeneratedToken | None]]:
    """The steps of up to `count` tokens that continue `prompt`, as they come, for each sequence.

    A model that was trained on records answers the prompt instead; its answer may end by itself.
    `written` is what already follows the prompt. A sequence is the same function of its index
    whatever the others are; after its end or its stop string it gives None. With `likeliest`, each
    step tells the odds of its token and of so many others. Nothing at all to continue stands for a
    new line. When the sequences outgrow the model's context, their older half is forgotten and the
    cache is filled anew from the rest.

    Raises:
        UserError: the vocabulary is none that a text can be written in.
    """
    ids = loaded.tokenizer.encode(beginning(loaded, prompt, written))
    if not ids:
        raise UserError(
            "the model's vocabulary makes no tokens of this text: its file was made by other "
            "means. Take one that `dvc repro` wrote."
        )
    writers = [SequenceState(loaded, ids, settings, seed, index) for index in indices]
    decoder = make_decoder(loaded, len(writers))
    context = decoder.context
    recent = [list(ids[-context:] if len(ids) <= context else ids[-(context // 2) :])]
    fresh = recent
    for place in range(count):
        if decoder.length + len(fresh[0]) > context:
            recent = fresh = [row[-(context // 2) :] for row in recent]
            decoder.reset()
        row = [
            None if writer.stops.met else writer.step(logits, place == count - 1, likeliest)
            for writer, logits in zip(writers, decoder.feed(fresh), strict=True)
        ]
        yield row
        if all(writer.stops.met for writer in writers):
            return
        # A sequence that is over goes on with any token: nothing reads it.
        fresh = [[step.token if step else 0] for step in row]
        recent = [
            [*old, *new] for old, new in zip(recent * (len(row) // len(recent)), fresh, strict=True)
        ]


def beginning(loaded: LoadedModel, prompt: str, written: str) -> bytes:
    """What the model continues."""
    before, after = prompt.encode("utf-8", "replace"), written.encode("utf-8", "replace")
    return before + PROMPT_END + after if loaded.answers else before + after or b"\n"


def generate_text(
    loaded: LoadedModel,
    prompt: str,
    count: int,
    settings: SamplingSettings,
    seed: int,
    index: int = 0,
) -> str:
    """All of one sequence's text at once."""
    rows = generate_steps(loaded, prompt, count, settings, seed, (index,))
    return "".join(step.text for (step,) in rows if step)
