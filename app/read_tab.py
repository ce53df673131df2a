"""The tab that shows how well the model expects a text: each token coloured by its surprise."""

import math
from itertools import islice

import streamlit as st
from marking import draw_text, marked, visible

from stages.lm.loading import LoadedModel
from stages.lm.reading import ReadToken, read

LONGEST = 20_000
"""Characters; the browser draws each token by itself."""
NATS_AT_FULL_COLOUR = 7
"""A token of one chance in a thousand has all the colour."""
EXAMPLE = "Paste any text: your own, one the model wrote, or one it never saw."


def read_tab(loaded: LoadedModel) -> None:
    """A text in, its surprise out."""
    with st.form("read form", border=False):
        text = st.text_area("Text", key="text", height=140, max_chars=LONGEST, placeholder=EXAMPLE)
        pressed = st.form_submit_button("Measure the surprise", key="read", type="primary")
    if pressed and text:
        st.session_state["read text"] = loaded, read(loaded, text.encode("utf-8", "replace"))
    reader, tokens = st.session_state.get("read text", (None, []))
    if reader is loaded:  # not what another model made of it
        figures(tokens)
        draw_text("".join(map(coloured, tokens)))
        st.caption(
            "The stronger the colour, the less the model expected the token. Point at one to see "
            "its probability and what was expected instead."
        )
        most_surprising(tokens)


def figures(tokens: list[ReadToken]) -> None:
    """The text's loss in each unit."""
    nats = math.fsum(token.nats for token in tokens)
    size = sum(len(token.data) for token in tokens)
    with st.container(horizontal=True):
        for name, value in {
            "Tokens": f"{len(tokens):,}",
            "Nats per token": f"{nats / len(tokens):.3f}",
            "Perplexity": f"{math.exp(nats / len(tokens)):,.1f}",
            "Bits per byte": f"{nats / size / math.log(2):.3f}",
        }.items():
            st.metric(name, value, border=True, width=170)


def coloured(token: ReadToken) -> str:
    """A token as HTML that shows it and cannot act: every character of it is escaped."""
    expected = ", ".join(f"{visible(data)} {100 * p:.0f} %" for data, p in token.likeliest)
    hint = f"{100 * math.exp(-token.nats):.2g} %, {token.nats:.2f} nats. Expected: {expected}"
    return marked(token.data.decode("utf-8", "replace"), hint, token.nats / NATS_AT_FULL_COLOUR)


def most_surprising(tokens: list[ReadToken]) -> None:
    """The ten tokens that were expected least, in words."""
    ranked = sorted(range(len(tokens)), key=lambda place: -tokens[place].nats)
    rows = []
    for place in islice(ranked, 10):
        token = tokens[place]
        before = b"".join(earlier.data for earlier in tokens[max(0, place - 8) : place])
        rows.append(
            {
                "after": "…" + before.decode("utf-8", "replace"),
                "came": visible(token.data),
                "probability": f"{100 * math.exp(-token.nats):.2g} %",
                "expected": ", ".join(visible(data) for data, _ in token.likeliest[:3]),
            }
        )
    with st.expander("The least expected tokens"):
        st.dataframe(rows, hide_index=True)
