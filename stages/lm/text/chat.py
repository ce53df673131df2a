"""How messages become the text that a model continues, and the templates of our own."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..core.errors import UserError
from .chat_template import Message, render_chat

MARKS = {"<|system|>": 0xFC, "<|user|>": 0xFD, "<|assistant|>": 0xFE, "<|end|>": 0xFF}
"""Control tokens of our own vocabularies: bytes that UTF-8 does not use, by their names."""

OWN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role != 'user' or not loop.first %}{{ '<|' + message.role + '|>' }}{% endif %}"
    "{{ message.content }}"
    "{% if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""For our own vocabularies. No name stands before a prompt that comes first."""

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role.title() + ':\\n' + message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""For vocabularies of others that come without one."""


@dataclass(frozen=True)
class Chat:
    """A chat template and the names of the tokens that it may ask for."""

    template: str = ""
    """Empty where there is none."""
    bos_token: str = ""
    eos_token: str = ""

    def render(self, messages: Sequence[Message], answer: bool) -> str:
        """The text of messages; with `answer`, an answer of the model follows.

        Raises:
            UserError: the template fails.
        """
        try:
            tokens = {"bos_token": self.bos_token, "eos_token": self.eos_token}
            return render_chat(self.template, messages, answer, **tokens)
        except ValueError as error:
            roles = ", ".join(role for role, _ in messages) or "nobody"
            raise UserError(
                f"the model's chat template cannot be used for messages of {roles} ({error}); "
                "bring records that it is made for, or a model with another template."
            ) from None


NO_CHAT = Chat()
OWN_DOCUMENTS = Chat(bos_token="<|end|>", eos_token="<|end|>")
"""For documents: one token before and after each."""
OWN_CHAT = Chat(OWN_TEMPLATE, eos_token="<|end|>")


def without_names(messages: Sequence[Message], names: Collection[str]) -> tuple[list[Message], str]:
    """Messages with a mark inside each of `names` that they hold, and the mark, one character.

    So a template can make control tokens, and what is said cannot.
    """
    said = "".join(content for _, content in messages)
    mark = next(chr(code) for code in range(0xF0000, 0x10FFFE) if chr(code) not in said)
    inside = "|".join(f"(?<={re.escape(name[0])})(?={re.escape(name[1:])})" for name in names)
    return [(role, re.sub(inside or "(?!)", mark, content)) for role, content in messages], mark
