"""Text with coloured parts, as HTML. Every character is escaped, so that no markup in it acts."""

import html
import re

import streamlit as st

STYLE = (
    "font-family: var(--st-code-font, monospace); font-size: 0.95rem; line-height: 1.7; "
    "white-space: pre-wrap; overflow-wrap: anywhere"
)


def marked(text: str, hint: str = "", colour: float = 0.0) -> str:
    """`text` as HTML; with a `hint` (a tooltip), on a background of this strength (0 to 1)."""
    if not hint:
        return html.escape(text)
    style = f"background: rgba(234, 88, 12, {min(1.0, max(0.0, colour)):.2f})"
    return f'<span title="{html.escape(hint)}" style="{style}">{html.escape(text)}</span>'


def draw_text(body: str) -> None:
    """Draw a text made of `marked` parts."""
    st.html(f'<div style="{STYLE}">{body}</div>')


def plain(text: str) -> str:
    """`text` for a widget that renders Markdown: as code, where nothing in it is markup."""
    # Streamlit renames its icons in the whole source before it looks for code.
    text = escaped(text).replace(":material/", ":material\u2060/")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"


def visible(data: bytes) -> str:
    """A token's bytes as visible characters in quotation marks.

    Different tokens look different: parts of characters are shown as `\\xe2`, `\\` is doubled.
    """
    text = data.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return f"“{escaped(text)}”"


def escaped(text: str) -> str:
    """`text` on one line, with escapes such as `\\n` for what cannot be seen."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def percent(probability: float) -> str:
    """A probability in two digits, above 99.5 % in three."""
    return f"{100 * probability:.{2 if probability < 0.995 else 3}g} %"
