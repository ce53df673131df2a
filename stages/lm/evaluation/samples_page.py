"""`metrics/samples.md`: what a model wrote, as Markdown. Knows nothing about models."""

from ..core.paths import QUANTIZED, shown
from ..settings.evaluate import EvaluateSettings
from ..text.records import Record


def samples_page(samples: list[bytes], settings: EvaluateSettings) -> str:
    """Texts of the quantized model, each after the prompt that it continues."""
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


def answers_page(answers: list[tuple[Record, str]]) -> str:
    """Held-out records, each with the likeliest answer of the quantized model."""
    lines = ["# Answers", "", f"The likeliest of `{shown(QUANTIZED)}`."]
    for number, (record, written) in enumerate(answers, 1):
        lines += ["", f"## Record {number}", "", block(record.prompt)]
        lines += ["", "Wanted:", "", block(record.completion)]
        lines += ["", "Written:", "", block(written)]
    return "\n".join(lines) + "\n"


def block(text: str) -> str:
    """A text as a code block of Markdown: indented, it is one whatever characters it holds."""
    return "".join(f"    {line}\n" for line in text.splitlines()).rstrip("\n")
