"""The tab that reads a text: each token coloured by its surprisal, the loss, the attention."""

import math
from itertools import islice

import altair as alt
import streamlit as st
from marking import draw_text, marked, percent, visible

from stages.lm.evaluation.surprisal import TokenSurprisal, attention, token_surprisals
from stages.lm.inference.loading import LoadedModel

MAX_CHARS = 20_000
"""Longest text; the browser lays out an element for each token."""
NATS_AT_FULL_COLOUR = 7
"""Surprisal at which a token has the full colour: a probability of 1 in 1,000."""
MAX_DRAWN = 40
"""Tokens in the picture of attention; with more the cells are too small to see."""
HINT = "Paste any text: your own, one the model wrote, or one it never saw."


def read_tab(loaded: LoadedModel) -> None:
    """Draw the tab: a form for a text, and what the model made of it."""
    with st.form("read form", border=False):
        text = st.text_area("Text", key="text", height=140, max_chars=MAX_CHARS, placeholder=HINT)
        pressed = st.form_submit_button("Measure the surprise", key="read", type="primary")
    if pressed and text:
        data = text.encode("utf-8", "replace")
        st.session_state["read text"] = loaded, token_surprisals(loaded, data)
    reader, tokens = st.session_state.get("read text", (None, []))
    if reader is loaded:  # not the result of another model
        loss_row(tokens)
        draw_text("".join(map(coloured, tokens)))
        st.caption(
            "The stronger the colour, the less the model expected the token. Point at one to see "
            "its probability and what was expected instead."
        )
        most_surprising(tokens)
        attention_chart(loaded, b"".join(token.data for token in tokens))


def attention_chart(loaded: LoadedModel, text: bytes) -> None:
    """Draw the attention weights of a layer and a head that are chosen."""
    box = st.expander("Attention", key="attention", on_change="rerun")
    with box:
        if not box.open:
            return
        config = loaded.model.config
        left, right = st.columns(2)
        layer = left.selectbox("Layer", range(1, config.layers + 1), key="layer")
        head = right.selectbox("Head", range(1, config.heads + 1), key="head")
        tokens, weights = attention(loaded, text, layer - 1)
        drawn = enumerate(tokens[:MAX_DRAWN], 1)
        names = [f"{number} {visible(token)}" for number, token in drawn]
        chart = attention_cells(names, weights[head - 1].tolist())
        st.altair_chart(chart, height=120 + 14 * len(names))
        st.caption(
            "Each row is a token; the darker a cell, the more of its attention goes to the token "
            f"named below it. The first {MAX_DRAWN} tokens are drawn."
        )


def attention_cells(names: list[str], weights: list[list[float]]) -> alt.Chart:
    """A chart of the lower triangle of `weights`, cut to as many rows and columns as names."""
    cells = [
        {"token": name, "attends to": names[column], "weight": line[column]}
        for row, (name, line) in enumerate(zip(names, weights, strict=False))
        for column in range(row + 1)
    ]
    across, down = (alt.Axis(labelFontSize=10, labelOverlap=overlap) for overlap in (True, False))
    chart: alt.Chart = (
        alt.Chart({"values": cells})
        .mark_rect()
        .encode(
            x=alt.X("attends to:N", sort=names, axis=across),
            y=alt.Y("token:N", sort=names, axis=down),
            color=alt.Color("weight:Q", scale=alt.Scale(scheme="teals", domain=[0, 1])),
            tooltip=["token:N", "attends to:N", alt.Tooltip("weight:Q", format=".1%")],
        )
    )
    return chart


def loss_row(tokens: list[TokenSurprisal]) -> None:
    """Draw the text's loss in each unit."""
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


def coloured(token: TokenSurprisal) -> str:
    """A token as HTML, coloured by its surprisal, with its probability as a hint."""
    expected = ", ".join(f"{visible(data)} {100 * p:.0f} %" for data, p in token.likeliest)
    hint = f"{percent(math.exp(-token.nats))}, {token.nats:.2f} nats. Expected: {expected}"
    return marked(token.data.decode("utf-8", "replace"), hint, token.nats / NATS_AT_FULL_COLOUR)


def most_surprising(tokens: list[TokenSurprisal]) -> None:
    """Draw a table of the ten tokens with the highest surprisal."""
    ranked = sorted(range(len(tokens)), key=lambda index: -tokens[index].nats)
    rows = []
    for index in islice(ranked, 10):
        token = tokens[index]
        before = b"".join(earlier.data for earlier in tokens[max(0, index - 8) : index])
        rows.append(
            {
                "after": "…" + before.decode("utf-8", "replace"),
                "came": visible(token.data),
                "probability": percent(math.exp(-token.nats)),
                "expected": ", ".join(visible(data) for data, _ in token.likeliest[:3]),
            }
        )
    with st.expander("The least expected tokens"):
        st.dataframe(rows, hide_index=True)
