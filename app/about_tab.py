"""The tab that describes the model: its shape, its training data, its held-out loss."""

import csv
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import altair as alt
import streamlit as st
from figures import Figures, figures_of
from marking import plain

from stages.lm.core import paths
from stages.lm.inference.loading import LoadedModel

THIS = "This model"


def about_tab(loaded: LoadedModel, name: str) -> None:
    """Draw the tab; `name` is the model file as a user would type it."""
    config = loaded.config
    st.caption(
        f"{name}: {config.arch}, {config.layers} layers of width {config.width}, vocabulary of "
        f"{config.vocab_size:,} tokens, context of {config.context:,} tokens"
    )
    figures = {"Parameters": short(loaded.model.parameter_count()), "Weights": loaded.scheme}
    figures["File"] = short(loaded.file_bytes) + "B"
    metric_row(figures | training_figures(loaded.provenance))
    known = figures_of(loaded.id, loaded.scheme != "float32")
    draw_if_ours(paths.EVALUATE_METRICS, known.own, lambda: held_out(known))
    draw_if_ours(paths.LOSS_CURVE, known.trained, loss_chart)


def training_figures(provenance: dict[str, Any]) -> dict[str, str]:
    """Labels and values of the training that the model file records; other files have none."""
    figures = {}
    with suppress(KeyError, TypeError, ArithmeticError):
        data = provenance["data"]
        train = data["splits"]["train"]
        if data.get("records"):
            figures["Training records"] = short(data["records"]["train"])
        else:
            if data.get("documents"):
                figures["Training documents"] = short(data["documents"]["train"])
            figures["Training text"] = short(train["bytes"]) + "B"
        figures["Training tokens"] = short(train["tokens"])
    with suppress(KeyError, TypeError, ValueError):
        figures["Epochs trained"] = f"{provenance['metrics']['epochs']:d}"
        figures["Best epoch, kept"] = f"{provenance['metrics']['best_epoch']:d}"
    return figures


def metric_row(figures: dict[str, str]) -> None:
    """Boxes with a label and a value, side by side as far as there is room."""
    with st.container(horizontal=True):
        for name, value in figures.items():
            st.metric(name, value, border=True, width=200)


def held_out(known: Figures) -> None:
    """Held-out results: exact match for records, else bits per byte beside compressors'."""
    results, ours = known.evaluated, known.own
    if "asked_records" in results:
        st.subheader("On held-out records")
        figures = {"Answered exactly": f"{100 * ours['exact_match']:.1f} %"}
        if "majority" in results:
            figures["Majority label"] = f"{100 * results['majority']:.1f} %"
        metric_row(figures | {"Records asked": f"{results['asked_records']:,}"})
        return
    st.subheader("On held-out text")
    bits = results.get("baselines", {}) | {THIS: ours["held_out"]["bits_per_byte"]}
    bits = dict(sorted(bits.items(), key=lambda item: item[1]))
    rows = [{"of": name, "bits": value} for name, value in bits.items()]
    bars = alt.Chart({"values": rows}).encode(
        x=alt.X("bits:Q", title="bits per byte; fewer is better", axis=alt.Axis(tickCount=6)),
        y=alt.Y("of:N", title=None, sort=list(bits)),
        tooltip=["of:N", alt.Tooltip("bits:Q", format=".3f")],
    )
    mine = alt.condition(alt.datum.of == THIS, alt.value("#0f766e"), alt.value("#94a3a0"))
    labels = bars.mark_text(align="left", dx=4, color="#94a3a0").encode(
        text=alt.Text("bits:Q", format=".3f")
    )
    st.altair_chart(bars.mark_bar(height=16).encode(color=mine) + labels, height=40 * len(bits))
    st.caption(explained_bits(bits))
    if copied := results.get("memorisation"):
        st.caption(
            f"In spans of {copied['span_bytes']:d} bytes or more, "
            f"{100 * copied['copied_share']:.1f} % of the text sampled from the quantized model "
            f"and {100 * copied['held_out_copied_share']:.1f} % of the held-out text stand word "
            "for word in the training text."
        )


def explained_bits(bits: dict[str, float]) -> str:
    """The bits per byte of `This model` and of the compressors, in a sentence or two."""
    ours = bits[THIS]
    sentence = (
        "A byte is 8 bits; the better the next byte is predicted, the fewer are needed. This model "
        f"needs {ours:.2f} per byte of text that it has never seen."
    )
    sides = {
        "less than": [name for name, value in bits.items() if value > ours],
        "more than": [name for name, value in bits.items() if value < ours],
    }
    clauses = [
        f"{side} {' and '.join(map(plain, names))}" for side, names in sides.items() if names
    ]
    if clauses:
        sentence += (
            f" That is {' and '.join(clauses)}, compressors that saw the training text first."
        )
    return sentence


def loss_chart() -> None:
    """Draw the training and validation loss over the steps."""
    st.subheader("Loss while training")
    names = {"train_loss": "training", "val_loss": "validation"}
    table = csv.DictReader(paths.LOSS_CURVE.read_text("utf-8").splitlines(), delimiter="\t")
    points = [
        {"step": int(row["step"]), "text": name, "loss": float(row[column])}
        for row in table
        for column, name in names.items()
        if row[column] != "nan"
    ]
    lines = alt.Chart({"values": points}).encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("loss:Q", title="loss, nats per token", scale=alt.Scale(zero=False)),
        color=alt.Color("text:N", title=None, legend=alt.Legend(orient="top")),
        tooltip=["text:N", "step:Q", alt.Tooltip("loss:Q", format=".4f")],
    )
    validation = lines.transform_filter(alt.datum.text == "validation")
    st.altair_chart(lines.mark_line() + validation.mark_point(filled=True, size=60), height=320)


def draw_if_ours(path: Path, ours: dict[str, Any], draw: Callable[[], None]) -> None:
    """Draw what needs a file, if there is one and it is of this model (`ours` is not empty)."""
    if not path.exists():
        return
    if not ours:
        st.caption(
            f"`{paths.shown(path)}` is not of this model. `dvc repro` makes the one that is."
        )
        return
    try:
        draw()
    except (OSError, ArithmeticError, ValueError, KeyError, TypeError, AttributeError):
        st.warning(f"`{paths.shown(path)}` cannot be read. Run `dvc repro` to make it again.")


def short(number: int) -> str:
    """A number in four digits with the prefix of its unit, such as `3.993 M`."""
    power = min(3, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.4g} {('', 'k', 'M', 'G')[power]}"
