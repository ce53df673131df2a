"""Marks the parts of a text that stand word for word in the training text."""

from collections.abc import Iterator
from contextlib import suppress

import streamlit as st
from marking import draw_text, marked

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_json
from stages.lm.data.dataset import TokenData
from stages.lm.data.token_text import TokenText
from stages.lm.evaluation.memorization import SPAN_BYTES, VerbatimSpan, verbatim_spans
from stages.lm.inference.loading import LoadedModel


def copied_parts(loaded: LoadedModel, texts: list[str]) -> None:
    """Draw the texts with their copied parts marked, and the share that is copied."""
    training = training_text(loaded)
    if training is None:
        st.text("The text this model was trained on is not in models/tokens/.")
        return
    for text in texts:
        data = text.encode("utf-8", "replace")
        spans = verbatim_spans(data, training)
        draw_text(marked_copies(data, spans))
        covered = sum(end - start for start, end, _ in without_overlaps(spans))
        st.caption(
            f"{100 * covered / max(1, len(data)):.0f} % stands word for word in the training "
            f"text, in {len(spans)} parts of {SPAN_BYTES} bytes or more."
        )


def training_text(loaded: LoadedModel) -> TokenText | None:
    """What the model was trained on, from `models/tokens/`; None where that holds another text."""
    with suppress(KeyError, TypeError, UserError):
        digest = loaded.provenance["data"]["digest"]
        if read_json(paths.TOKENS / "meta.json")["digest"] == digest:
            return TokenText(TokenData.load(paths.TOKENS).train, loaded.tokenizer.tokens)
    return None


def without_overlaps(spans: list[VerbatimSpan]) -> Iterator[tuple[int, int, VerbatimSpan]]:
    """Each span with the start and end (in bytes) of what it adds to the spans before it."""
    end = 0
    for span in spans:
        start, end = max(end, span.start), span.start + span.length
        yield start, end, span


def marked_copies(data: bytes, spans: list[VerbatimSpan]) -> str:
    """A text in UTF-8 as HTML with its copied parts marked."""
    body, done = "", 0
    for start, end, span in without_overlaps(spans):
        start, end = character_start(data, start), character_start(data, end)
        hint = f"{span.length:,} bytes, as at byte {span.offset:,} of the training text"
        body += marked(data[done:start].decode("utf-8", "replace"))
        body += marked(data[start:end].decode("utf-8", "replace"), hint, 0.4)
        done = end
    return body + marked(data[done:].decode("utf-8", "replace"))


def character_start(data: bytes, offset: int) -> int:
    """The offset at which the character begins that the byte at `offset` is part of."""
    while 0 < offset < len(data) and data[offset] & 0xC0 == 0x80:
        offset -= 1
    return offset
