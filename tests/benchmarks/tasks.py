"""Records to try a task on: `python tests/benchmarks/tasks.py TASK > data/input.jsonl`.

`sections`: the first paragraph of each section in the sample text, and the section's heading.
`dates`: days written out, and as ISO 8601 has them.
"""

import json
import random
import re
import sys
from datetime import date

from stages.sample_text import sample_text

HEADING = re.compile(r"^([A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)
LABELS = ("Parameters", "Returns", "Raises", "Examples", "Notes", "References", "See Also")
LONGEST = 240
"""Characters of a paragraph that are asked about."""
DAYS = range(700_000, 740_000)
"""From 1917 to 2027, as Python counts days."""


def sections() -> dict[str, str]:
    """Every distinct first paragraph, in the order of the text."""
    _, *parts = HEADING.split(sample_text())
    found = {}
    for label, body in zip(parts[::2], parts[1::2], strict=True):
        paragraph = body.strip("\n").split("\n\n")[0][:LONGEST]
        if label in LABELS and paragraph.strip():
            found[paragraph] = label
    return found


def dates() -> dict[str, str]:
    """4,000 days of about a century."""
    days = map(date.fromordinal, random.Random(1).sample(DAYS, 4_000))
    return {f"{day:%B} {day.day}, {day.year}": day.isoformat() for day in days}


if __name__ == "__main__":
    for prompt, completion in {"sections": sections, "dates": dates}[sys.argv[1]]().items():
        print(json.dumps({"prompt": prompt, "completion": completion}))
