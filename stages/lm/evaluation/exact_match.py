"""How well a model that was trained on records answers: exactly, or not at all."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ..inference.generation import SamplingSettings, generate_steps, generate_text
from ..inference.loading import LoadedModel
from ..text.records import RECORD_END, Record

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
"""The likeliest token each time: no seed matters."""
MAX_LABELS = 100
"""Completions of the training records, at most, among which a prompt is said to be classified."""


def answer(loaded: LoadedModel, prompt: str, count: int) -> str:
    """The likeliest answer, of at most `count` tokens."""
    return generate_text(loaded, prompt, count, GREEDY, 0)


def answers_exactly(loaded: LoadedModel, record: Record) -> bool:
    """Whether the likeliest answer is the record's completion, byte for byte, and ends there.

    What an answer that went wrong goes on with is not waited for.
    """
    left = record.completion.encode() + RECORD_END
    for (step,) in generate_steps(loaded, record.prompt, len(left), GREEDY, 0):
        if step is None or not left.startswith(step.data):
            return False
        left = left[len(step.data) :]
    return not left


def exact_match(loaded: LoadedModel, records: Iterable[Record]) -> float:
    """The share of the records that are answered exactly."""
    right = [answers_exactly(loaded, record) for record in records]
    return round(sum(right) / len(right), 4)


def majority(training: Sequence[Record], held_out: Sequence[Record]) -> float | None:
    """The share of the held-out records that the likeliest training completion answers.

    None where completions are no labels: where there are more than `MAX_LABELS`, or fewer than two
    training records for each.
    """
    labels = Counter(record.completion for record in training)
    if len(labels) > min(MAX_LABELS, len(training) // 2):
        return None
    # Of equally frequent ones the first in order, whatever order the records have.
    likeliest = min(labels, key=lambda label: (-labels[label], label))
    right = sum(record.completion == likeliest for record in held_out)
    return round(right / len(held_out), 4)
