"""Writes a `Modelfile`, from which `ollama create NAME -f Modelfile` makes a model of a GGUF file.

Its grammar is in `docs/modelfile.mdx` of Ollama. The chat template in a GGUF file is one in Jinja.
Versions of Ollama read that, or take the one of their own that looks most like it; one in the
Modelfile, in the language of Go's `text/template`, comes first in all of them.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ..core.errors import UserError
from ..core.files import write_text
from ..inference.generation import DEFAULT_LENGTH, SamplingSettings
from ..inference.loading import LoadedModel
from ..text.chat import Chat
from ..text.conversation import end_token

ROLES = {"s": "system", "u": "user", "a": "assistant"}
CONVERSATIONS = ("u", "uau", "uauau", "su", "suau")
"""The roles of messages, by their letters, of which a chat template is tried."""
PROMPT_ALONE = "{{ .Prompt }}"
"""The template of a model that continues a text."""


def write_modelfile(loaded: LoadedModel, folder: Path, files: Sequence[str]) -> None:
    """Write `Modelfile` into a folder, for the first of the GGUF `files` that lie there."""
    tokenizer, ours = loaded.tokenizer, SamplingSettings()
    first, *others = (f"FROM ./{name}" for name in files)
    lines = [first, *(f"# {other}" for other in others)]
    template: str | None = PROMPT_ALONE
    if tokenizer.chat.template:
        template = go_template(tokenizer.chat, [tokenizer.control[each] for each in loaded.opening])
    lines.append(
        "# No TEMPLATE: Go cannot express this one. Ollama reads the one in the GGUF file."
        if template is None
        else f'TEMPLATE """{template}"""'
    )
    end = end_token(tokenizer)
    if end is not None:
        lines.append(f'PARAMETER stop """{tokenizer.control[end]}"""')
    lines += [
        f"PARAMETER temperature {ours.temperature}",
        f"PARAMETER top_k {ours.top_k}",
        f"PARAMETER top_p {ours.top_p}",
        f"PARAMETER repeat_penalty {ours.repetition_penalty}",
        f"PARAMETER num_predict {DEFAULT_LENGTH}",
        f"PARAMETER num_ctx {loaded.config.context}",
    ]
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")


def go_template(chat: Chat, opening: Sequence[str] = ()) -> str | None:
    """A chat template in Go, for conversations in turns; None if Go cannot express it.

    It can where each message is written once and as it is, and what is written between two depends
    on their roles alone. The tokens `opening` are left out, as llama.cpp puts them before a text.
    """
    between = _between(chat)
    if between is None or not all(map(_is_plain, between.values())):
        return None
    first = {key: text.removeprefix("".join(opening)) for key, text in between.items()}
    system, user = first.get("^s", "{{ continue }}"), first["^u"]
    return (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "system" }}'
        f'{system}{{{{ else if eq .Role "assistant" }}}}{between["ua"]}'
        f"{{{{ else if eq $i 0 }}}}{user}"
        f"{{{{ else if and $.System (eq $i 1) }}}}{between.get('su', user)}"
        f"{{{{ else }}}}{between['au']}{{{{ end }}}}{{{{ .Content }}}}{{{{ end }}}}{between['u$']}"
    )


def _between(chat: Chat) -> dict[str, str] | None:
    """What a template writes between messages of two roles, by their letters; None if that varies.

    `ua` is between a prompt and its answer, `^u` before a first prompt, and `u$` after a last one.
    """
    found: dict[str, str] = {}
    for roles in CONVERSATIONS:
        contents = [f"{chr(0xE000 + number)}Ab" for number in range(len(roles))]
        messages = [(ROLES[role], said) for role, said in zip(roles, contents, strict=True)]
        try:
            parts = re.split("([\ue000-\ue0ff]Ab)", chat.render(messages, True))
        except UserError:
            if "s" in roles:  # some have no messages of the system
                continue
            return None
        if parts[1::2] != contents:
            return None
        for step, text in zip(map("".join, pairwise(f"^{roles}$")), parts[::2], strict=True):
            if found.setdefault(step, text) != text:
                return None
    return found


def _is_plain(text: str) -> bool:
    """Whether a text can stand in a template in a Modelfile, which drops characters unseen."""
    return "{" not in text and '"""' not in text and re.sub("[\n\t]", "", text).isprintable()
