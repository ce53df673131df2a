"""The tab that shows how well the model expects a text: each token coloured by its surprise."""

import math
from itertools import islice

import altair as alt
import streamlit as st
from marking import draw_text, marked, percent, visible

from stages.lm.evaluation.surprisal import TokenSurprisal, attention, token_surprisals
from stages.lm.inference.loading import LoadedModel

LONGEST = 20_000
"""Characters; the browser draws each token by itself."""
NATS_AT_FULL_COLOUR = 7
"""A token of one chance in a thousand has all the colour."""
DRAWN = 40
"""Tokens in the picture of attention; more are too small to see."""
EXAMPLE = "Paste any text: your own, one the model wrote, or one it never saw."


def read_tab(loaded: LoadedModel) -> None:
    """A text in, its surprise out."""
    with st.form("read form", border=False):
        text = st.text_area("Text", key="text", height=140, max_chars=LONGEST, placeholder=EXAMPLE)
        pressed = st.form_submit_button("Measure the surprise", key="read", type="primary")
    if pressed and text:
        data = text.encode("utf-8", "replace")
        st.session_state["read text"] = loaded, token_surprisals(loaded, data)
    reader, tokens = st.session_state.get("read text", (None, []))
    if reader is loaded:  # not what another model made of it
        figures(tokens)
        draw_text("".join(map(coloured, tokens)))
        st.caption(
            "The stronger the colour, the less the model expected the token. Point at one to see "
            "its probability and what was expected instead."
        )
        most_surprising(tokens)
        attention_chart(loaded, b"".join(token.data for token in tokens))


def attention_chart(loaded: LoadedModel, text: bytes) -> None:
    """Which tokens each token attends to, for a layer and a head of choice."""
    box = st.expander("Attention", key="attention", on_change="rerun")
    with box:
        if not box.open:
            return
        config = loaded.model.config
        left, right = st.columns(2)
        layer = left.selectbox("Layer", range(1, config.layers + 1), key="layer")
        head = right.selectbox("Head", range(1, config.heads + 1), key="head")
        tokens, shares = attention(loaded, text, layer - 1)
        names = [f"{place + 1} {visible(token)}" for place, token in enumerate(tokens[:DRAWN])]
        chart = attention_cells(names, shares[head - 1].tolist())
        st.altair_chart(chart, height=120 + 14 * len(names))
        st.caption(
            "Each row is a token; the darker a cell, the more of its attention goes to the token "
            f"named below it. The first {DRAWN} tokens are drawn."
        )


def attention_cells(names: list[str], shares: list[list[float]]) -> alt.Chart:
    """A picture of `shares`, a row a token; as many rows and columns as there are names."""
    cells = [
        {"token": name, "attends to": names[column], "share": line[column]}
        for row, (name, line) in enumerate(zip(names, shares, strict=False))
        for column in range(row + 1)
    ]
    across, down = (alt.Axis(labelFontSize=10, labelOverlap=overlap) for overlap in (True, False))
    chart = alt.Chart({"values": cells}).mark_rect()
    return chart.encode(
        x=alt.X("attends to:N", sort=names, axis=across),
        y=alt.Y("token:N", sort=names, axis=down),
        color=alt.Color("share:Q", scale=alt.Scale(scheme="teals", domain=[0, 1])),
        tooltip=["token:N", "attends to:N", alt.Tooltip("share:Q", format=".1%")],
    )


def figures(tokens: list[TokenSurprisal]) -> None:
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


def coloured(token: TokenSurprisal) -> str:
    """A token as HTML that shows it and cannot act: every character of it is escaped."""
    expected = ", ".join(f"{visible(data)} {100 * p:.0f} %" for data, p in token.likeliest)
    hint = f"{percent(math.exp(-token.nats))}, {token.nats:.2f} nats. Expected: {expected}"
    return marked(token.data.decode("utf-8", "replace"), hint, token.nats / NATS_AT_FULL_COLOUR)


def most_surprising(tokens: list[TokenSurprisal]) -> None:
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
                "probability": percent(math.exp(-token.nats)),
                "expected": ", ".join(visible(data) for data, _ in token.likeliest[:3]),
            }
        )
    with st.expander("The least expected tokens"):
        st.dataframe(rows, hide_index=True)
