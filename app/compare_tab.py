"""The tab that sets two models side by side: their figures, and what each writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pandas as pd
import streamlit as st
from about_tab import short
from experiments import Experiment, experiments, load_experiment, metrics, read_metrics
from figures import figures_of, number_in
from marking import plain
from streamlit.delta_generator import DeltaGenerator

from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id
from stages.lm.core.errors import UserError
from stages.lm.inference.loading import LoadedModel

REDRAW_SECONDS = 0.1
NOTHING = "—"  # a hyphen would be a list: a table renders Markdown


@dataclass(frozen=True)
class ModelChoice:
    """A model that can be compared: a file of the workspace, or an experiment's."""

    label: str
    file: Path
    experiment: Experiment | None = None


@dataclass
class Side:
    """What one of the two models has written so far."""

    label: str
    lead: str
    """Shown before the model's text: the prompt."""
    tokens: int = 0
    seconds: float = 0.0
    """Spent on this model's tokens alone."""
    text: str = ""


def compare_tab(
    load: Callable[[Path], LoadedModel],
    write: Callable[[LoadedModel, str], Iterator[tuple[int, str]]],
) -> None:
    """Draw the tab: two models to choose, a prompt, two texts.

    `load` gives the model in a file of the workspace. `write` continues a prompt: after each token
    it yields the number of tokens so far and the new text.
    """
    choices = available_models()
    picked = []
    for column, name, first in zip(st.columns(2), ("Left", "Right"), (0, 1), strict=True):
        with column:
            label = attrgetter("label")
            picked.append(st.selectbox(name, choices, first, key=name, format_func=label))
    table(picked)
    for note in [*cached_experiments()[1], *unreadable(picked)]:
        st.text(note)  # not Markdown: it may quote a file
    with st.form("compare form", border=False):
        prompt = st.text_area("Prompt for both", key="both", height=100)
        pressed = st.form_submit_button("Write with both", key="compare", type="primary")
    if pressed:
        compare(picked, prompt, load, write)
    elif "comparison" in st.session_state:
        draw(st.session_state["comparison"], [column.empty() for column in st.columns(2)])
    if len(choices) == 2:
        st.caption("`dvc exp run -S train.epochs=2`, for example, adds an experiment to this list.")


def available_models() -> list[ModelChoice]:
    """The two models of the workspace and those of all experiments."""
    return [
        ModelChoice("Quantized", paths.QUANTIZED),
        ModelChoice("Checkpoint (float32)", paths.CHECKPOINT),
        *(ModelChoice(described(each), paths.QUANTIZED, each) for each in cached_experiments()[0]),
    ]


@st.cache_data(ttl=10, show_spinner=False)
def cached_experiments() -> tuple[list[Experiment], list[str]]:
    """DVC's experiments and what of them cannot be read, from git at most every ten seconds."""
    return experiments()


def described(experiment: Experiment) -> str:
    """An experiment's name and the settings it changes."""
    changes = [
        f"{key} {'default' if theirs is None else str(theirs)[:60]}"
        for key, (_, theirs) in experiment.changed.items()
    ]
    return ": ".join([experiment.name, *([", ".join(changes)] if changes else [])])


def unreadable(picked: list[ModelChoice]) -> list[str]:
    """A sentence on each metrics file of these models that cannot be read."""
    notes = []
    for choice in picked:
        revision = choice.experiment.revision if choice.experiment else None
        for path in (paths.TRAIN_METRICS, paths.QUANTIZE_METRICS, paths.EVALUATE_METRICS):
            try:
                read_metrics(revision, path)
            except UserError as error:
                notes.append(f"{choice.label}: {error}")
    return notes


def table(picked: list[ModelChoice]) -> None:
    """Draw the figures of both models, side by side."""
    columns = [facts(choice) for choice in picked]
    st.table(pd.DataFrame(columns, index=["Left", "Right"]).T)


def facts(choice: ModelChoice) -> dict[str, str]:
    """Labels and values of a model from the files in `metrics/`, as far as they are of it."""
    if choice.experiment:
        revision = choice.experiment.revision
        model = metrics(revision, paths.QUANTIZE_METRICS).get("model")
    else:
        revision, model = None, artifact_id(choice.file)
    quantized = choice.file == paths.QUANTIZED
    known = figures_of(model, quantized, revision)
    bits = number_in(known.own, "held_out", "bits_per_byte")
    size = number_in(known.quantized, "file_bytes" if quantized else "checkpoint_bytes")
    return {
        "Bits per byte of held-out text": NOTHING if bits is None else f"{bits:.4f}",
        "File": NOTHING if size is None else f"{short(int(size))}B",
        "Parameters": counted(number_in(known.trained, "parameters")),
        "Best epoch": counted(number_in(known.trained, "best_epoch")),
    }


def counted(number: float | None) -> str:
    """A number in full, or a dash where there is none."""
    return NOTHING if number is None else f"{number:,}"


def compare(
    picked: list[ModelChoice],
    prompt: str,
    load: Callable[[Path], LoadedModel],
    write: Callable[[LoadedModel, str], Iterator[tuple[int, str]]],
) -> None:
    """Continue the prompt with both models, one token of each in turn."""
    try:
        models = [
            cached_load(choice.experiment.revision, choice.experiment.name)
            if choice.experiment
            else load(choice.file)
            for choice in picked
        ]
    except UserError as error:
        st.error("These models cannot be compared.")
        st.text(str(error))  # not Markdown: the message may quote bytes of a file
        return
    except FileNotFoundError as error:
        st.info(f"{plain(str(error.filename))} does not exist yet. Run `dvc repro` to make it.")
        return
    sides = [
        Side(choice.label, model.lead(prompt)) for choice, model in zip(picked, models, strict=True)
    ]
    st.session_state["comparison"] = sides
    slots = [column.empty() for column in st.columns(2)]
    draw(sides, slots)
    streams = [write(model, prompt) for model in models]
    unfinished, drawn = [0, 1], time.perf_counter()
    while unfinished:
        for index in list(unfinished):
            side, began = sides[index], time.perf_counter()
            step = next(streams[index], None)
            side.seconds += time.perf_counter() - began
            if step is None:
                unfinished.remove(index)
                continue
            side.tokens, piece = step
            side.text += piece
        if time.perf_counter() - drawn > REDRAW_SECONDS:
            draw(sides, slots)
            drawn = time.perf_counter()
    draw(sides, slots)


@st.cache_resource(max_entries=4, show_spinner="Fetching the experiment's model…")
def cached_load(revision: str, name: str) -> LoadedModel:
    """An experiment's quantized model; a revision never changes, so it is cached for good."""
    return load_experiment(revision, name)


def draw(sides: list[Side], slots: list[DeltaGenerator]) -> None:
    """Draw both texts, each under the name of its model and its speed."""
    for slot, side in zip(slots, sides, strict=True):
        with slot.container():
            st.caption(
                f"{plain(side.label)} · {side.tokens / max(side.seconds, 1e-9):,.0f} tokens/s"
            )
            # st.code strips one newline at either end: these two.
            st.code(f"\n{side.lead}{side.text}\n", language=None, wrap_lines=True)
