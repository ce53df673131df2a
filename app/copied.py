"""Which parts of a text stand word for word in the training text."""

from collections.abc import Iterator
from contextlib import suppress

import streamlit as st
from marking import draw_text, marked

from stages.lm.core import paths
from stages.lm.evaluation.memorization import SPAN_BYTES, VerbatimSpan, verbatim_spans
from stages.lm.inference.loading import LoadedModel


def copied_parts(loaded: LoadedModel, texts: list[str]) -> None:
    """Which parts of the texts stand word for word in the training text, and where."""
    size = training_bytes(loaded)
    if size is None:
        st.text("The text this model was trained on is not in data/input.txt.")
        return
    for text in texts:
        data = text.encode("utf-8", "replace")
        found = verbatim_spans(data, paths.INPUT, size)
        draw_text(marked_copies(data, found))
        covered = sum(end - start for start, end, _ in parts(found))
        st.caption(
            f"{100 * covered / max(1, len(data)):.0f} % stands word for word in the training "
            f"text, in {len(found)} parts of {SPAN_BYTES} bytes or more."
        )


def training_bytes(loaded: LoadedModel) -> int | None:
    """How much of `data/input.txt` the model was trained on; None where it is another text."""
    with suppress(KeyError, TypeError, OSError):
        splits = loaded.provenance["data"]["splits"]
        if paths.INPUT.stat().st_size == sum(split["bytes"] for split in splits.values()):
            return int(splits["train"]["bytes"])
    return None


def parts(found: list[VerbatimSpan]) -> Iterator[tuple[int, int, VerbatimSpan]]:
    """What each copy adds to those before it: start, end and the copy."""
    end = 0
    for copy in found:
        start, end = max(end, copy.start), copy.start + copy.length
        yield start, end, copy


def marked_copies(data: bytes, found: list[VerbatimSpan]) -> str:
    """A text as HTML with its copied parts marked."""
    body, done = "", 0
    for start, end, copy in parts(found):
        start, end = character_start(data, start), character_start(data, end)
        hint = f"{copy.length:,} bytes, as at byte {copy.offset:,} of the training text"
        body += marked(data[done:start].decode("utf-8", "replace"))
        body += marked(data[start:end].decode("utf-8", "replace"), hint, 0.4)
        done = end
    return body + marked(data[done:].decode("utf-8", "replace"))


def character_start(data: bytes, place: int) -> int:
    """The beginning of the character that the byte at `place` is part of."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place
