"""The share of records that a model answers exactly, and the share that a constant answer gets."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..data.sequence_packing import last_answers
from ..inference.generation import SamplingSettings, generate_steps, generate_text
from ..inference.loading import LoadedModel
from ..text.interface import Tokenizer

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0)
"""Always takes the most likely token, whatever the seed."""
MAX_LABELS = 100
"""With more distinct completions than this, a task is not taken for classification."""


@dataclass(frozen=True)
class Question:
    """A record as its last answer is asked for."""

    context: list[int]
    """Token ids."""
    prompt: str
    """The context as text."""
    completion: bytes
    """The answer that is wanted."""


def questions_in(tokens: np.ndarray, tokenizer: Tokenizer) -> list[Question]:
    """The questions in marked tokens of records."""
    return [
        Question(
            context, tokenizer.decode(context).decode("utf-8", "replace"), tokenizer.decode(answer)
        )
        for context, answer in last_answers(tokens)
    ]


def answer(loaded: LoadedModel, question: Question, max_new_tokens: int) -> str:
    """The answer by greedy decoding."""
    return generate_text(loaded, question.context, max_new_tokens, GREEDY, 0)


def answers_exactly(loaded: LoadedModel, question: Question) -> bool:
    """Whether the greedy answer is the completion, byte for byte, and ends there.

    Decoding stops at the first token that differs.
    """
    rest = question.completion
    for (step,) in generate_steps(loaded, question.context, len(rest) + 1, GREEDY, 0):
        assert step
        if step.token in loaded.tokenizer.control:
            return not rest
        if not rest.startswith(step.data):
            return False
        rest = rest[len(step.data) :]
    return False


def exact_match(loaded: LoadedModel, questions: Iterable[Question]) -> float:
    """The share of the questions that are answered exactly."""
    right = [answers_exactly(loaded, question) for question in questions]
    return round(sum(right) / len(right), 4)


def majority(training: Sequence[bytes], held_out: Sequence[bytes]) -> float | None:
    """The share of held-out completions that are the most frequent one in training.

    None where the task is not classification: more than `MAX_LABELS` distinct completions, or
    fewer than two training records for each.
    """
    labels = Counter(training)
    if len(labels) > min(MAX_LABELS, len(training) // 2):
        return None
    # Ties go to the first in alphabetical order, so that the order of records has no effect.
    most_frequent = min(labels, key=lambda label: (-labels[label], label))
    return round(held_out.count(most_frequent) / len(held_out), 4)
