"""Conversations with a model, message by message."""

from collections.abc import Iterable, Iterator

from ..text.chat_template import Message
from .generation import SamplingSettings, chat_ids, generate_steps
from .loading import LoadedModel


def replies(
    loaded: LoadedModel,
    lines: Iterable[str],
    system: str,
    length: int,
    sampling: SamplingSettings,
    seed: int,
) -> Iterator[str]:
    """The text of answers to successive lines, as it comes, each followed by a new line.

    `system` is said before the first one, if it is not empty. An empty line begins anew.

    Raises:
        UserError: the model has no chat template, or this fails.
    """
    before: list[Message] = [("system", system)] if system else []
    chat_ids(loaded, [*before, ("user", "a")])  # refuses before anything is typed
    messages = list(before)
    for line in lines:
        said = line.rstrip("\r\n").encode("utf-8", "replace").decode()
        if not said:
            messages = list(before)
            continue
        messages.append(("user", said))
        answer = ""
        for (step,) in generate_steps(loaded, chat_ids(loaded, messages), length, sampling, seed):
            assert step
            yield step.text
            answer += step.text
        yield "\n"
        messages.append(("assistant", answer))
