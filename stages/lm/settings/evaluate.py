"""The `evaluate:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Range


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How the models are scored, and which samples are written."""

    SECTION: ClassVar[str] = "evaluate"

    max_bytes: Annotated[int, Range(1, 10**12)]
    """Most bytes of text to score in each split, from its start. Of records, all are scored."""

    max_records: Annotated[int, Range(1, 10**9)]
    """Held-out records that the model answers, spread evenly over val and test, to count exact
    matches. No effect on a text."""

    also: str
    """The name of another text in `data/base/`, of which `max_bytes` are scored too: it tells what
    a model that started from weights has forgotten. Empty is none."""

    min_context: Annotated[int, Range(0, 131_072)]
    """Fewest tokens of context before a scored token (sliding window). More is slower and scores
    better; at most `model.context - 1` is used."""

    cache: Annotated[int, Range(0, 30_000)]
    """Tokens that a neural cache remembers; 0 is off. The loss with it is adaptive, and stands as
    such beside the others. About 3,000 serve most texts. No effect with records."""

    samples: Annotated[int, Range(0, 1_000)]
    """Texts that are generated, written to `metrics/samples.md` and searched for copies of the
    training text; with records, held-out ones written there with the model's answers."""

    sample_tokens: Annotated[int, Range(1, 100_000)]
    """Tokens in each sample."""

    prompt: str
    """Text that every sample continues; empty continues a line break. No effect with records, which
    are answered greedily."""

    temperature: Annotated[float, Range(0, 100)]
    """Divides the logits; 0 always takes the most likely token."""

    top_k: Annotated[int, Range(0, 1_000_000)]
    """Sample from this many most likely tokens only. 0 is off."""

    top_p: Annotated[float, Range(0, 1)]
    """Sample from the fewest tokens whose probabilities add up to this (nucleus). 1 is off."""

    seed: Annotated[int, Range(0, 2**31 - 1)]
    """Seed of the samples."""
