"""Losses in the units people compare, and the files and lines they are shown in."""

import math
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ..core.files import write_errors, write_text


def loss_units(nats: float, tokens: int, size: float) -> dict[str, float]:
    """One loss in four units, from sums over a text of `tokens` tokens and `size` bytes.

    Only the last two compare across tokenizers.
    """
    return {
        "loss": round(nats / tokens, 6),
        "perplexity": round(math.exp(min(nats / tokens, 700)), 4),
        "nats_per_byte": round(nats / size, 6),
        "bits_per_byte": round(nats / size / math.log(2), 6),
    }


def write_tsv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as tab-separated values; a missing number is `nan` (empty is drawn as 0)."""
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
    """Append those `lines` that a log does not hold yet (a killed run may have lost its last)."""
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text("utf-8", "replace") if path.exists() else ""
        held = set(text.splitlines())
        with path.open("a", encoding="utf-8") as log:
            if text and not text.endswith("\n"):
                log.write("\n")  # after the part of a line that a killed run left
            log.writelines(line + "\n" for line in lines if line not in held)
