"""Conversations as token ids, and which of the tokens the model is to learn: its answers."""

from collections.abc import Sequence

import numpy as np

from ..core.errors import UserError
from ..data.sequence_packing import LAST, LEARNED, ids_of
from .chat import without_names
from .chat_template import Message
from .interface import Tokenizer


def prompt_ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """The ids that an answer to the messages follows.

    Raises:
        UserError: the chat template fails.
    """
    cut, mark = without_names(messages, tokenizer.control.values())
    return tokenizer.encode_rendered(tokenizer.chat.render(cut, True).split(mark))


def conversation_tokens(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[np.ndarray]:
    """The marked tokens of a conversation, uint32, see `sequence_packing`.

    They are one sequence if each prompt, as it is when the model answers, begins with what was
    before. Some templates change or leave out earlier answers: then there are several.

    Raises:
        UserError: the chat template fails, or does not end answers in a control token.
    """
    chat = tokenizer.chat
    cut, mark = without_names(messages, tokenizer.control.values())

    def encode(text: str) -> list[int]:
        return tokenizer.encode_rendered(text.split(mark))

    sequences: list[tuple[list[int], list[range]]] = []
    for index, (role, _) in enumerate(cut):
        if role != "assistant":
            continue
        before, after = chat.render(cut[:index], True), chat.render(cut[: index + 1], False)
        if not after.startswith(before):
            raise UserError(
                "the model's chat template writes an answer otherwise than where the model begins "
                "it; bring a model with another template."
            )
        prompt, ids = encode(before), encode(after)
        answer = ids[len(prompt) :]
        if ids[: len(prompt)] != prompt:  # a token spans the beginning of the answer
            answer = encode(after[len(before) :])
        answer, rest = _at_end(answer, tokenizer)
        if sequences and prompt[: len(sequences[-1][0])] == sequences[-1][0]:
            learned = sequences.pop()[1]
        else:
            learned = []
        learned.append(range(len(prompt), len(prompt) + len(answer)))
        sequences.append((prompt + answer + rest, learned))
    return [_marked(ids, learned) for ids, learned in sequences]


def end_token(tokenizer: Tokenizer) -> int | None:
    """The control token that ends an answer, or else a text; None where there is none."""
    if tokenizer.chat.template:
        (tokens,) = conversation_tokens(tokenizer, [("user", "a"), ("assistant", "b")])
        return int(ids_of(tokens)[-1])
    return tokenizer.named(tokenizer.chat.eos_token)


def _at_end(ids: list[int], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """An answer up to its end, a control token, and what the template writes after it."""
    for index, token in enumerate(ids, 1):
        if token in tokenizer.control:
            return ids[:index], ids[index:]
    end = tokenizer.named(tokenizer.chat.eos_token)
    if end is not None:
        return [*ids, end], []
    raise UserError(
        "the model's chat template ends answers in no control token, so the model could not learn "
        "where to end; bring a model with another template."
    )


def _marked(ids: list[int], learned: list[range]) -> np.ndarray:
    """The tokens up to the last answer's end, with their marks."""
    tokens = np.array(ids[: learned[-1].stop], np.uint32)
    for part in learned:
        tokens[part] |= LEARNED
    tokens[-1] |= LAST
    return tokens
