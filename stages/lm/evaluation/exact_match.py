"""The share of records that a model answers exactly, and the share that a constant answer gets."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..inference.generation import SamplingSettings, generate_steps, generate_text
from ..inference.loading import LoadedModel
from ..text.records import RECORD_END, Record

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
"""Always takes the most likely token, whatever the seed."""
MAX_LABELS = 100
"""With more distinct completions than this, a task is not taken for classification."""


def answer(loaded: LoadedModel, prompt: str, max_new_tokens: int) -> str:
    """The answer by greedy decoding."""
    return generate_text(loaded, prompt, max_new_tokens, GREEDY, 0)


def answers_exactly(loaded: LoadedModel, record: Record) -> bool:
    """Whether the greedy answer is the record's completion, byte for byte, and ends there.

    Decoding stops at the first token that differs.
    """
    rest = record.completion.encode() + RECORD_END
    for (step,) in generate_steps(loaded, record.prompt, len(rest), GREEDY, 0):
        if step is None or not rest.startswith(step.data):
            return False
        rest = rest[len(step.data) :]
    return not rest


def exact_match(loaded: LoadedModel, records: Iterable[Record]) -> float:
    """The share of the records that are answered exactly."""
    right = [answers_exactly(loaded, record) for record in records]
    return round(sum(right) / len(right), 4)


def majority(training: Sequence[Record], held_out: Sequence[Record]) -> float | None:
    """The share of held-out records whose completion is the most frequent one in training.

    None where the task is not classification: more than `MAX_LABELS` distinct completions, or
    fewer than two training records for each.
    """
    labels = Counter(record.completion for record in training)
    if len(labels) > min(MAX_LABELS, len(training) // 2):
        return None
    # Ties go to the first in alphabetical order, so that the order of records has no effect.
    most_frequent = min(labels, key=lambda label: (-labels[label], label))
    right = sum(record.completion == most_frequent for record in held_out)
    return round(right / len(held_out), 4)
