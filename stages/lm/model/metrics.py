"""Loss units, and how metrics are written: tab-separated values, times, log lines."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..core.files import write_errors, write_text


def loss_units(nats: float, tokens: int, size: float) -> dict[str, float]:
    """One loss in four units, from the sum of -ln p over `tokens` tokens that are `size` bytes.

    Only those per byte can be compared between models with different tokenizers.
    """
    return {
        "loss": round(nats / tokens, 6),
        "perplexity": round(math.exp(min(nats / tokens, 700)), 4),
        "nats_per_byte": round(nats / size, 6),
        "bits_per_byte": round(nats / size / math.log(2), 6),
    }


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as tab-separated values; a missing one is `nan`: DVC plots an empty one as 0."""
    lines = ["\t".join(columns)]
    for row in rows:
        lines.append("\t".join(_cell(row.get(column, math.nan)) for column in columns))
    write_text(path, "\n".join(lines) + "\n")


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def timestamp() -> str:
    """Local time, to the second."""
    return datetime.now().isoformat(sep=" ", timespec="seconds")


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def append_missing_lines(path: Path, lines: Iterable[str]) -> None:
    """Append those of `lines` that a log lacks: the last lines of a killed run may be lost."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text("utf-8", "replace") if path.exists() else ""
        held = set(text.splitlines())
        with path.open("a", encoding="utf-8") as log:
            if text and not text.endswith("\n"):
                log.write("\n")  # ends a line that a killed run wrote in part
            log.writelines(line + "\n" for line in lines if line not in held)
