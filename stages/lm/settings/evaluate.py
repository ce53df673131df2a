"""The `evaluate:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Range


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """How the models are scored, and which samples are written."""

    SECTION: ClassVar[str] = "evaluate"

    max_bytes: Annotated[int, Range(1, 10**12)]
    """Bytes scored of each split, from its start; a smaller split is scored whole. Of records, all
    completions are scored."""

    max_records: Annotated[int, Range(1, 10**9)]
    """Held-out records that are answered to see how many answers are right, spread evenly over val
    and test. No effect on a text."""

    also: str
    """The name of another text in `data/base/`, of which `max_bytes` are scored too: what a model
    that started from weights forgets of what it knew. Empty is none."""

    min_context: Annotated[int, Range(0, 131_072)]
    """Tokens of context every scored token has at least (sliding window). More is slower and
    scores better; at most `model.context - 1` is used."""

    samples: Annotated[int, Range(0, 1_000)]
    """Texts written to `metrics/samples.md` and searched for copies of the training text; of
    records, the held-out ones written there with their answers."""

    sample_tokens: Annotated[int, Range(1, 100_000)]
    """Tokens in each sample."""

    prompt: str
    """Text every sample continues; empty starts as a new line would. No effect with records, whose
    answers are the likeliest ones."""

    temperature: Annotated[float, Range(0, 100)]
    """Divides the logits; 0 always takes the most likely token."""

    top_k: Annotated[int, Range(0, 1_000_000)]
    """Choose among this many most likely tokens only. 0 is off."""

    top_p: Annotated[float, Range(0, 1)]
    """Choose among the fewest tokens whose probabilities reach this sum. 1 is off."""

    seed: Annotated[int, Range(0, 2**31 - 1)]
    """Fixes the samples."""
