"""Records to try a task on: first paragraphs of sections in the sample text, and their headings.

python tests/benchmarks/sections.py > data/input.jsonl
"""

import json
import re

from stages.lm.sample_text import sample_text

HEADING = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
LABELS = ("Parameters", "Returns", "Raises", "Examples", "Notes", "References", "See Also")
LONGEST = 240
"""Characters of a paragraph that are asked about."""


def records() -> list[dict[str, str]]:
    """Every distinct paragraph that is the first under one of the headings, in the text's order."""
    _, *parts = HEADING.split(sample_text())
    found = {}
    for label, body in zip(parts[::2], parts[1::2], strict=True):
        paragraph = body.strip("\n").split("\n\n")[0][:LONGEST]
        if label in LABELS and paragraph.strip():
            found[paragraph] = label
    return [{"prompt": paragraph, "completion": label} for paragraph, label in found.items()]


if __name__ == "__main__":
    for record in records():
        print(json.dumps(record))
