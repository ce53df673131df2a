"""Text of which parts are marked. Every character is escaped, so that nothing in it can act."""

import html

import streamlit as st

from stages.lm.text.records import RECORD_END

STYLE = (
    "font-family: var(--st-code-font, monospace); font-size: 0.95rem; line-height: 1.7; "
    "white-space: pre-wrap; overflow-wrap: anywhere"
)


def marked(text: str, hint: str = "", colour: float = 0.0) -> str:
    """`text` as HTML on a ground of so much colour (0 to 1), with a hint for who points at it."""
    if not hint:
        return html.escape(text)
    ground = f"rgba(234, 88, 12, {min(1.0, max(0.0, colour)):.2f})"
    return (
        f'<span title="{html.escape(hint)}" style="background: {ground}">{html.escape(text)}</span>'
    )


def draw_text(body: str) -> None:
    """Put a text made of `marked` parts onto the page."""
    st.html(f'<div style="{STYLE}">{body}</div>')


def visible(data: bytes) -> str:
    """A token's bytes in visible characters, between quotation marks; ⏹ is the end of an answer."""
    text = data.removesuffix(RECORD_END).decode("utf-8", "replace")
    text += "⏹" * data.endswith(RECORD_END)
    return "“" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "”"


def percent(share: float) -> str:
    """A probability in two digits; what is nearly certain in three."""
    return f"{100 * share:.{2 if share < 0.995 else 3}g} %"
