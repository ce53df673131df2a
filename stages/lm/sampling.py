"""Decoding: a prompt in, text out, token by token, from a model with a key/value cache.

The app, the terminal and evaluate all generate through here, so the same call gives the same
text everywhere.
"""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .decoder import Decoder, make_decoder
from .loading import LoadedModel

DEFAULT_LENGTH = 200
"""Tokens that the page and the terminal write unless told otherwise."""
DEFAULT_SEED = 1337


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How a token is chosen from the logits."""

    temperature: float = 0.8
    """Divides the logits; 0 always takes the most likely token."""
    top_k: int = 0
    """Choose among this many most likely tokens only; 0 is off."""
    top_p: float = 0.95
    """Choose among the fewest tokens whose probabilities reach this sum; 1 is off."""


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Logits (V,) with all but the `k` largest at -inf; ties with the k-th stay."""
    if k <= 0 or k >= logits.numel():
        return logits
    threshold = torch.topk(logits, k).values[-1]
    return logits.masked_fill(logits < threshold, float("-inf"))


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Logits (V,) with all at -inf but the fewest whose probabilities reach `p`; at least one.

    Nucleus sampling (Holtzman et al. 2020).
    """
    if p >= 1:
        return logits
    ordered, places = torch.sort(logits, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    # A token goes when those before it already reach p.
    surplus = probabilities.cumsum(dim=-1) - probabilities >= p
    surplus[0] = False
    return logits.index_fill(0, places[surplus], float("-inf"))


def choose(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """A token id drawn from logits (V,): temperature, then top-k, then top-p."""
    if settings.temperature == 0:
        return int(logits.argmax())
    # On the CPU in float64: the same draw on every device and with any number of threads.
    logits = logits.double().cpu()
    logits = logits - logits.max()
    logits = keep_top_p(keep_top_k(logits / settings.temperature, settings.top_k), settings.top_p)
    sums = logits.softmax(dim=-1).cumsum(dim=-1)
    point = torch.rand((), generator=generator, dtype=torch.float64) * sums[-1]
    place = int(torch.searchsorted(sums, point, right=True))
    return min(place, int(logits.isfinite().nonzero()[-1]))


def sequence_generator(seed: int, index: int) -> torch.Generator:
    """The random generator of the `index`-th sequence, whatever their number."""
    # Two small numbers become one seed through SplitMix64's odd constant, so that (1, 0) and
    # (0, 1) differ.
    return torch.Generator().manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)


def generate_tokens(
    decoder: Decoder,
    prompt: list[int],
    count: int,
    settings: SamplingSettings,
    generator: torch.Generator,
) -> Iterator[int]:
    """`count` tokens that continue `prompt` (at least one token), as they are chosen.

    When the sequence outgrows the model's context, its older half is forgotten and the cache is
    filled anew from the rest.
    """
    context = decoder.context
    recent = prompt[-context:] if len(prompt) <= context else prompt[-(context // 2) :]
    fresh = list(recent)
    for _ in range(count):
        if decoder.length + len(fresh) > context:
            recent = recent[-(context // 2) :]
            fresh = list(recent)
            decoder.forget()
        token = choose(decoder.feed([fresh])[0], settings, generator)
        yield token
        fresh = [token]
        recent.append(token)


def stream_bytes(
    loaded: LoadedModel,
    prompt: str,
    count: int,
    settings: SamplingSettings,
    seed: int,
    index: int = 0,
) -> Iterator[bytes]:
    """The bytes of each of `count` tokens that continue `prompt`, as they come.

    An empty prompt stands for a new line.
    """
    tokens = loaded.tokenizer.encode((prompt or "\n").encode("utf-8", "replace"))
    generator = sequence_generator(seed, index)
    for token in generate_tokens(make_decoder(loaded), tokens, count, settings, generator):
        yield loaded.tokenizer.decode([token])


def stream_text(
    loaded: LoadedModel,
    prompt: str,
    count: int,
    settings: SamplingSettings,
    seed: int,
    index: int = 0,
) -> Iterator[str]:
    """What `stream_bytes` gives, as text in pieces.

    Joined, the pieces are valid text: a character whose bytes come in several tokens is held back
    until it is whole, and broken ones become U+FFFD.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for data in stream_bytes(loaded, prompt, count, settings, seed, index):
        if piece := decoder.decode(data):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def generate_text(
    loaded: LoadedModel,
    prompt: str,
    count: int,
    settings: SamplingSettings,
    seed: int,
    index: int = 0,
) -> str:
    """All of `stream_text` at once."""
    return "".join(stream_text(loaded, prompt, count, settings, seed, index))
