"""The page: a prompt in, the model's text out, and what is known about the model.

Start it with `streamlit run app/app.py`. Streamlit runs this file anew at every click; what must
outlive a click is in `st.session_state`. Models and decoding are the library's.
"""

import gc
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import streamlit as st
import this_clone  # noqa: F401  (before what imports `stages`)
from about_tab import about_tab
from compare_tab import compare_tab
from progress import training_progress
from read_tab import read_tab
from write_tab import write_tab
from writing import Request

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.inference.generation import (
    DEFAULT_LENGTH,
    DEFAULT_SEED,
    SamplingSettings,
    generate_steps,
)
from stages.lm.inference.loading import LoadedModel, load_model

HEAT = "Low keeps to the likely, high dares more. 0 always takes the most likely token."
TOP_K = "Choose among this many most likely tokens. 0 is off."
TOP_P = "Choose among the fewest tokens whose probabilities reach this sum. 1 is off."
MIN_P = "Choose among the tokens at least this many times as likely as the likeliest. 0 is off."
PENALTY = "Above 1, what the text already has is less likely to come again. 1 is off."
STOP = r"A text ends before the first of these, one a line. \\n stands for a new line."
SAME = "The same prompt, settings and seed give the same text, here and in the terminal."
PRESETS = {
    "Balanced": SamplingSettings(),
    "Careful": SamplingSettings(temperature=0.5, top_p=0.9),
    "Daring": SamplingSettings(temperature=1.1, top_p=1.0, min_p=0.05),
    "Likeliest": SamplingSettings(temperature=0.0, top_p=1.0),
}


def main() -> None:
    """The whole page."""
    # No icon: the browser would fetch it from another server.
    st.set_page_config("Write with your model", layout="wide")
    st.title("Write with your model")
    freeze_imports()
    st.markdown("Give a prompt; the language model you trained goes on from it.")
    training_progress()
    path, request = sidebar()
    loaded = model_or_stop(path)
    writing, reading, comparing, about = st.tabs(["Write", "Read", "Compare", "About this model"])
    with writing:
        write_tab(loaded, paths.shown(path), request)
    with reading:
        read_tab(loaded)
    with comparing:
        compare_tab(workspace_model, partial(written, request))
    with about:
        about_tab(loaded, paths.shown(path))


@st.cache_resource(show_spinner=False)
def freeze_imports() -> None:
    """Leave what is imported out of garbage collection, once for the server.

    Streamlit collects at the end of each run, which took 0.2 s through torch's modules.
    """
    gc.freeze()


def sidebar() -> tuple[Path, Request]:
    """The model's file and a request that still lacks its prompt."""
    files = {"Quantized": paths.QUANTIZED, "Checkpoint (float32)": paths.CHECKPOINT}
    with st.sidebar:
        file = st.radio("Model", list(files), key="model")
        st.divider()
        length = st.number_input("Length in tokens", 1, 10_000, DEFAULT_LENGTH, key="length")
        sequences = st.slider("Sequences", 1, 4, 1, key="sequences")
        seed = st.number_input("Seed", 0, 2**31 - 1, DEFAULT_SEED, key="seed", help=SAME)
        st.divider()
        sampling = sampling_widgets()
    return files[file], Request("", length, sequences, sampling, seed)


def sampling_widgets() -> SamplingSettings:
    """How a token is chosen: a preset, and every value of it."""
    ours = SamplingSettings()
    st.pills("How to choose", list(PRESETS), key="preset", on_change=take_preset)
    heat = st.slider("Temperature", 0.0, 2.0, ours.temperature, 0.05, key="heat", help=HEAT)
    top_p = st.slider("Top-p", 0.0, 1.0, ours.top_p, 0.01, key="top_p", help=TOP_P)
    with st.expander("More"):
        top_k = st.number_input("Top-k", 0, 1_000_000, ours.top_k, key="top_k", help=TOP_K)
        min_p = st.slider("Min-p", 0.0, 1.0, ours.min_p, 0.01, key="min_p", help=MIN_P)
        usual = ours.repetition_penalty
        penalty = st.slider(
            "Repetition penalty", 1.0, 2.0, usual, 0.05, key="penalty", help=PENALTY
        )
        stop = st.text_area("Stop strings", key="stop", height=68, help=STOP)
    return SamplingSettings(
        temperature=heat,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        stop=tuple(line.replace("\\n", "\n") for line in stop.split("\n") if line),
    )


def take_preset() -> None:
    """Set the samplers' widgets to the preset's values."""
    state = st.session_state
    if preset := PRESETS.get(state["preset"]):
        state["heat"], state["top_k"] = preset.temperature, preset.top_k
        state["top_p"], state["min_p"] = preset.top_p, preset.min_p
        state["penalty"] = preset.repetition_penalty


@st.cache_resource(max_entries=2, show_spinner="Reading the model…")
def cached_model(path: Path, mtime_ns: int, size: int, inode: int) -> LoadedModel:
    """The model in a file of this state; shared by every visitor, so nobody may change it."""
    return load_model(path)


def workspace_model(path: Path) -> LoadedModel:
    """The model in a file as it is now.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be used.
    """
    state = path.stat()
    return cached_model(path, state.st_mtime_ns, state.st_size, state.st_ino)


def model_or_stop(path: Path) -> LoadedModel:
    """The model in a file as it is now. Without one the page says why and ends here."""
    try:
        return workspace_model(path)
    except FileNotFoundError:
        missing = f"`{paths.shown(path)}` does not exist yet."
        st.info(f"{missing} Run `dvc repro` in the project's folder, then reload this page.")
    except UserError as error:
        st.error("This model cannot be used.")
        # As plain text: the sentence may quote what a foreign file holds.
        st.text(str(error))
    st.stop()


def written(request: Request, loaded: LoadedModel, prompt: str) -> Iterator[tuple[int, str]]:
    """After each token how many there are, and its piece of the text."""
    rows = generate_steps(loaded, prompt, request.length, request.sampling, request.seed)
    for count, (step,) in enumerate(rows, 1):
        yield count, step.text if step else ""


main()
