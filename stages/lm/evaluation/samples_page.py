"""The Markdown of `metrics/samples.md`: sampled texts, or held-out records with answers."""

from ..core.paths import QUANTIZED, shown
from ..settings.evaluate import EvaluateSettings
from .exact_match import Question


def samples_page(samples: list[bytes], settings: EvaluateSettings) -> str:
    """Samples of the quantized model (UTF-8, cut anywhere), each after the prompt it continues."""
    lines = [
        "# Samples",
        "",
        f"From `{shown(QUANTIZED)}`: temperature {settings.temperature:g}, top-k "
        f"{settings.top_k}, top-p {settings.top_p:g}, seed {settings.seed}.",
    ]
    for number, sample in enumerate(samples, 1):
        text = settings.prompt + sample.decode("utf-8", "replace")
        lines += ["", f"## Sample {number}", "", block(text)]
    return "\n".join(lines) + "\n"


def answers_page(answers: list[tuple[Question, str]]) -> str:
    """Held-out records, each with the greedy answer of the quantized model."""
    lines = ["# Answers", "", f"From `{shown(QUANTIZED)}`, by greedy decoding."]
    for number, (question, written) in enumerate(answers, 1):
        lines += ["", f"## Record {number}", "", block(question.prompt)]
        lines += ["", "Wanted:", "", block(question.completion.decode("utf-8", "replace"))]
        lines += ["", "Written:", "", block(written)]
    return "\n".join(lines) + "\n"


def block(text: str) -> str:
    """A text as an indented code block, which, unlike a fenced one, no character can end."""
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip("\n")
