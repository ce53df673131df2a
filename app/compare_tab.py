"""The tab that sets two models side by side: their figures, and what each writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pandas as pd
import streamlit as st
from about_tab import short
from experiments import Experiment, experiments, figures, load_experiment
from streamlit.delta_generator import DeltaGenerator

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.inference.loading import LoadedModel

REDRAW_SECONDS = 0.1
NOTHING = "-"


@dataclass(frozen=True)
class Choice:
    """One of the models that can be compared."""

    label: str
    file: Path
    experiment: Experiment | None = None


@dataclass
class Side:
    """What one of two models wrote, in so many seconds of its own."""

    label: str
    lead: str
    """What is shown before what it wrote."""
    tokens: int = 0
    seconds: float = 0.0
    text: str = ""


def compare_tab(
    load: Callable[[Path], LoadedModel],
    write: Callable[[LoadedModel, str], Iterator[tuple[int, str]]],
) -> None:
    """Two choices, a prompt, two texts.

    `load` gives the model in a file of the workspace; `write` continues a prompt, giving after
    each token how many there are and its piece of the text.
    """
    choices = available()
    picked = []
    for column, name, first in zip(st.columns(2), ("Left", "Right"), (0, 1), strict=True):
        with column:
            label = attrgetter("label")
            picked.append(st.selectbox(name, choices, first, key=name, format_func=label))
    table(picked)
    with st.form("compare form", border=False):
        prompt = st.text_area("Prompt for both", key="both", height=100)
        pressed = st.form_submit_button("Write with both", key="compare", type="primary")
    if pressed:
        compare(picked, prompt, load, write)
    elif "comparison" in st.session_state:
        draw(st.session_state["comparison"], [place.empty() for place in st.columns(2)])
    if len(choices) == 2:
        st.caption("`dvc exp run -S train.epochs=2`, say, adds an experiment to choose from.")


def available() -> list[Choice]:
    """The two models of the workspace and those of all experiments."""
    return [
        Choice("Quantized", paths.QUANTIZED),
        Choice("Checkpoint (float32)", paths.CHECKPOINT),
        *(Choice(described(each), paths.QUANTIZED, each) for each in cached_experiments()),
    ]


@st.cache_data(ttl=10, show_spinner=False)
def cached_experiments() -> list[Experiment]:
    """The experiments; git is asked anew after ten seconds."""
    return experiments()


def described(experiment: Experiment) -> str:
    """An experiment's name and what it changes."""
    changes = [
        f"{key} {'default' if theirs is None else theirs}"
        for key, (_, theirs) in experiment.changed.items()
    ]
    return ": ".join([experiment.name, *([", ".join(changes)] if changes else [])])


def table(picked: list[Choice]) -> None:
    """The figures of both, under each other."""
    columns = [facts(choice) for choice in picked]
    st.table(pd.DataFrame(columns, index=["Left", "Right"]).T)


def facts(choice: Choice) -> dict[str, str]:
    """What the metrics say of a model."""
    revision = choice.experiment.revision if choice.experiment else None
    trained = figures(revision, paths.TRAIN_METRICS)
    evaluated = figures(revision, paths.EVALUATE_METRICS)
    sizes = figures(revision, paths.QUANTIZE_METRICS)
    quantized = choice.file == paths.QUANTIZED
    held_out = evaluated.get("quantized" if quantized else "float", {}).get("held_out", {})
    size = sizes.get("file_bytes" if quantized else "checkpoint_bytes")
    return {
        "Bits per byte of held-out text": shown(held_out.get("bits_per_byte"), "{:.4f}"),
        "File": NOTHING if size is None else f"{short(size)}B",
        "Parameters": shown(trained.get("parameters"), "{:,}"),
        "Best epoch": shown(trained.get("best_epoch"), "{:,}"),
    }


def shown(value: float | None, form: str) -> str:
    """A figure in words, or a dash for none."""
    return form.format(value) if isinstance(value, int | float) else NOTHING


def compare(
    picked: list[Choice],
    prompt: str,
    load: Callable[[Path], LoadedModel],
    write: Callable[[LoadedModel, str], Iterator[tuple[int, str]]],
) -> None:
    """Write with both, a token of each in turn, so that neither waits for the other."""
    try:
        models = [
            cached_load(choice.experiment.revision, choice.experiment.name)
            if choice.experiment
            else load(choice.file)
            for choice in picked
        ]
    except UserError as error:
        st.error("These models cannot be compared.")
        st.text(str(error))  # plain, as it may quote what a foreign file holds
        return
    except FileNotFoundError as error:
        st.info(f"`{error.filename}` does not exist yet. Run `dvc repro` to make it.")
        return
    sides = [
        Side(choice.label, model.lead(prompt)) for choice, model in zip(picked, models, strict=True)
    ]
    st.session_state["comparison"] = sides
    places = [place.empty() for place in st.columns(2)]
    draw(sides, places)
    streams = [write(model, prompt) for model in models]
    open_ends, drawn = [0, 1], time.perf_counter()
    while open_ends:
        for end in list(open_ends):
            side, began = sides[end], time.perf_counter()
            step = next(streams[end], None)
            side.seconds += time.perf_counter() - began
            if step is None:
                open_ends.remove(end)
                continue
            side.tokens, piece = step
            side.text += piece
        if time.perf_counter() - drawn > REDRAW_SECONDS:
            draw(sides, places)
            drawn = time.perf_counter()
    draw(sides, places)


@st.cache_resource(max_entries=4, show_spinner="Fetching the experiment's model…")
def cached_load(revision: str, name: str) -> LoadedModel:
    """An experiment's model; a revision never changes."""
    return load_experiment(revision, name)


def draw(sides: list[Side], places: list[DeltaGenerator]) -> None:
    """Both texts, each under the name of its model."""
    for place, side in zip(places, sides, strict=True):
        with place.container():
            st.caption(f"{side.label} · {side.tokens / max(side.seconds, 1e-9):,.0f} tokens/s")
            # st.code drops one newline at either end; these two are for it to drop.
            st.code(f"\n{side.lead}{side.text}\n", language=None, wrap_lines=True)
