"""Text generation: a prompt in, texts out, token by token.

The page, the terminal and evaluation all generate with these functions, so the same prompt,
settings and seed give the same text in each of them, in a batch of any size.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..text.chat_template import Message
from ..text.conversation import prompt_ids
from .decoder import ContextWindow, make_decoder
from .loading import LoadedModel
from .neural_cache import NeuralCache
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


def sampler_value(default: Any, low: float, high: float, help: str) -> Any:
    """A field of `SamplingSettings` with what page and terminal say and allow of it."""
    return field(default=default, metadata={"low": low, "high": high, "help": help})


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a token is chosen from the logits, and where the text stops."""

    temperature: float = sampler_value(
        0.8, 0, 100, "Low values favour likely tokens, high values unlikely ones. 0 takes the most "
        "likely."
    )  # fmt: skip
    """Divides the logits."""
    top_k: int = sampler_value(
        0, 0, 1_000_000, "Sample only from this many most likely tokens. 0 is off."
    )
    top_p: float = sampler_value(
        0.95, 0, 1, "Sample only from the fewest tokens whose probabilities reach this sum. 1 is "
        "off."
    )  # fmt: skip
    min_p: float = sampler_value(
        0.0, 0, 1, "Leave out tokens below this share of the highest probability. 0 is off."
    )
    repetition_penalty: float = sampler_value(
        1.0, 1, 100, "Above 1, tokens that the text already has become less likely. 1 is off."
    )
    cache: int = sampler_value(
        0, 0, 30_000, "Let the last tokens of the text, so many, vote for what follows where the "
        "text is as it was there: long texts stay in voice. 0 is off."
    )  # fmt: skip
    """Size of a `NeuralCache`."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these to appear in it."""


SAMPLER_VALUES = {each.name: each for each in fields(SamplingSettings) if each.metadata}
"""The numbers among the fields of `SamplingSettings`, by name."""


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural logarithms of token probabilities at one position of a text."""

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
    """The random generator of the `index`-th sequence, for a batch of any size."""
    # Two small numbers become one seed through SplitMix64's odd constant, so that (1, 0) and
    # (0, 1) differ.
    return torch.Generator().manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)


class WrittenText:
    """The text of tokens, as it grows.

    Raises:
        UserError: one of `written`, the ids of the first tokens, is not in the vocabulary.
    """

    def __init__(
        self, loaded: LoadedModel, settings: SamplingSettings, written: Sequence[int]
    ) -> None:
        count = loaded.tokenizer.vocab_size
        if others := [token for token in written if not 0 <= token < count]:
            raise UserError(
                f"what was written holds the token id {others[0]}, but the model has the ids 0 to "
                f"{count - 1}: it was written by another model. Take that one, or begin a new text."
            )
        self.tokenizer = loaded.tokenizer
        self.stops = StopStrings(settings.stop)
        self.ended = False
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")
        self.start = "".join([self.grow(token) for token in written])
        """The text of `written`, without what is held back of its end."""

    @property
    def over(self) -> bool:
        """A stop string came, or a control token, which ends every text: nothing follows."""
        return self.stops.met or self.ended

    def grow(self, token: int, last: bool = False) -> str:
        """What the text grows by with its next token; see `GeneratedToken.text`."""
        if self.over:
            return ""
        certain = self.stops.feed(self.tokenizer.tokens[token])
        self.ended = token in self.tokenizer.control
        final = last or self.over
        return self.characters.decode(certain + self.stops.held * final, final)


class SequenceState:
    """One sequence of a batch: chooses its tokens and turns them into text."""

    def __init__(
        self,
        loaded: LoadedModel,
        prompt: list[int],
        settings: SamplingSettings,
        seed: int,
        index: int,
        written: Sequence[int],
    ) -> None:
        self.tokens = loaded.tokenizer.tokens
        self.settings = settings
        self.text = WrittenText(loaded, settings, written)
        self.generator = sequence_generator(seed, index)
        # Each token was drawn with one random number.
        torch.rand(len(written), generator=self.generator, dtype=torch.float64)
        self.seen = None
        if settings.repetition_penalty != 1:
            self.seen = torch.zeros(len(self.tokens), dtype=torch.bool)
            self.seen[[*prompt, *written]] = True

    def step(self, logits: Tensor, last: bool, top_logprobs: int | None) -> GeneratedToken:
        """Choose a token from logits (V,).

        Raises:
            UserError: one of them is no number.
        """
        # On the CPU in float64: the same draw on every device and with any number of threads.
        given = logits.double().cpu()
        if not given.isfinite().all():
            raise UserError(
                "the model's file holds weights so large that its results are no numbers: it was "
                "made by other means. Take one that `dvc repro` wrote."
            )
        kept = sampled_logits(given, self.settings, self.seen)
        token = draw(kept, self.generator)
        if self.seen is not None:
            self.seen[token] = True
        text = self.text.grow(token, last)
        logprobs = (
            None if top_logprobs is None else logprobs_of(x, token, top_logprobs)
            for x in (given, kept)
        )
        return GeneratedToken(token, self.tokens[token], text, *logprobs)


def logprobs_of(logits: Tensor, token: int, top_logprobs: int) -> TokenLogprobs:
    """The log-probability that logits (V,) give `token`, and those of the likeliest tokens."""
    # Not logsumexp: of a vocabulary it is slower, and keeps every thread of torch busy.
    logs = logits.log_softmax(dim=-1)
    top = logs.topk(min(top_logprobs, logs.numel()))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return TokenLogprobs(logs[token].item(), [(i, log) for i, log in pairs if log > float("-inf")])


def generate_steps(
    loaded: LoadedModel,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
    indices: Sequence[int] = (0,),
    top_logprobs: int | None = None,
    written: Sequence[int] = (),
) -> Iterator[list[GeneratedToken | None]]:
    """For each step, the token of every sequence; up to `max_new_tokens` steps from `prompt` on.

    A model that was trained on records answers the prompt instead, and one that was trained on
    documents begins one with it; it can also be token ids. Where nothing stands before a text, an
    empty prompt is replaced by a new line. A control token ends the text.
    `written` has the ids of tokens that already follow the prompt: the steps are those of the call
    that wrote them, had it gone on. A sequence depends on its index, not on the others; after its
    end or its stop string it gives None. With `top_logprobs`, a step has the log-probabilities of
    its token and of this many of the likeliest. Tokens beyond the context: see `ContextWindow`.

    Raises:
        UserError: an id is not in the vocabulary, no text can be written in it, or what the model
            computes is no number.
    """
    ids = text_ids(loaded, prompt) if isinstance(prompt, str) else list(prompt)
    if not ids:
        raise UserError(
            "the model's vocabulary makes no tokens of this text: its file was made by other "
            "means. Take one that `dvc repro` wrote."
        )
    states = [SequenceState(loaded, ids, settings, seed, index, written) for index in indices]
    size, batch = settings.cache, len(states)
    cache = NeuralCache(size, batch, loaded.config.width) if size else None
    window = ContextWindow(make_decoder(loaded, batch, size > 0), ids, cache)
    for token in written:
        window.append([token])
    for step in range(max_new_tokens):
        if all(state.text.over for state in states):
            return
        last = step == max_new_tokens - 1
        row = [
            None if state.text.over else state.step(logits, last, top_logprobs)
            for state, logits in zip(states, window.logits(), strict=True)
        ]
        yield row
        # A sequence that is over goes on with any token: nothing reads it.
        window.append([each.token if each else 0 for each in row])


def text_ids(loaded: LoadedModel, prompt: str) -> list[int]:
    """The token ids that the model continues."""
    data = prompt.encode("utf-8", "replace")
    if loaded.answers:
        return chat_ids(loaded, [("user", data.decode())])
    ids = loaded.opening + loaded.tokenizer.encode(data)
    return ids or loaded.tokenizer.encode(b"\n")


def chat_ids(loaded: LoadedModel, messages: Sequence[Message]) -> list[int]:
    """The token ids that an answer to the messages follows.

    Raises:
        UserError: the model has no chat template, or this fails.
    """
    if not loaded.tokenizer.chat.template:
        raise UserError(
            "the model has no chat template: it continues a text. Train it on records, or begin "
            "with a model that answers."
        )
    return prompt_ids(loaded.tokenizer, messages)


def generate_text(
    loaded: LoadedModel,
    prompt: str | Sequence[int],
    max_new_tokens: int,
    settings: SamplingSettings,
    seed: int,
    index: int = 0,
) -> str:
    """All of one sequence's text at once."""
    rows = generate_steps(loaded, prompt, max_new_tokens, settings, seed, (index,))
    return "".join(step.text for (step,) in rows if step)
