"""The page: writes with the model, reads a text, compares models, and describes the model.

Start it with `streamlit run app/app.py`. Streamlit runs this file again at every click; what must
survive a click is kept in `st.session_state`. Loading and decoding are done by `stages.lm`.
"""

import gc
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import streamlit as st
import this_clone  # noqa: F401  (before what imports `stages`)
from about_tab import about_tab
from chat_tab import chat_tab
from compare_tab import compare_tab
from progress import training_progress
from read_tab import read_tab
from streamlit import runtime
from write_tab import write_tab
from writing import Request

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.inference.generation import (
    DEFAULT_LENGTH,
    DEFAULT_SEED,
    SAMPLER_VALUES,
    SamplingSettings,
    generate_steps,
)
from stages.lm.inference.loading import LoadedModel, load_model

HELP = {name: value.metadata["help"] for name, value in SAMPLER_VALUES.items()}
STOP = r"The text ends before the first of these strings, one per line. \\n means a new line."
LENGTH = "So many tokens are written after the prompt, and so many more by “Go on”."
SEED = "The same prompt, settings and seed give the same text, here and in the terminal."
PRESETS = {
    "Balanced": SamplingSettings(),
    "Careful": SamplingSettings(temperature=0.5, top_p=0.9),
    "Daring": SamplingSettings(temperature=1.1, top_p=1.0, min_p=0.05),
    "Likeliest": SamplingSettings(temperature=0.0, top_p=1.0),
}


def main() -> None:
    """The whole page."""
    if not runtime.exists():
        # Also where `python -m app.generate` in this folder finds the page instead of the package.
        sys.exit(
            "error: app/app.py is the page; start it with `streamlit run app/app.py`. That and "
            "`python -m app.generate` are run in the project's folder."
        )
    # No icon: the browser would fetch it from another server.
    st.set_page_config("Write with your model", layout="wide")
    st.title("Write with your model")
    freeze_imports()
    st.markdown("Give a prompt; the language model you trained continues it.")
    training_progress()
    path, request = sidebar()
    loaded = model_or_stop(path)
    names = ["Write", "Read", "Compare", "About this model", *(["Chat"] if loaded.answers else [])]
    writing, reading, comparing, about, *chatting = st.tabs(names)
    with writing:
        write_tab(loaded, paths.shown(path), request)
    with reading:
        read_tab(loaded)
    with comparing:
        compare_tab(workspace_model, partial(written, request))
    with about:
        about_tab(loaded, paths.shown(path))
    for tab in chatting:
        with tab:
            chat_tab(loaded, request)


@st.cache_resource(show_spinner=False)
def freeze_imports() -> None:
    """Exempt imported modules from garbage collection, once per server.

    Streamlit collects after each run; going through torch's modules took 0.2 s.
    """
    gc.freeze()


def sidebar() -> tuple[Path, Request]:
    """The chosen model file, and the settings as a request without a prompt."""
    files = {"Quantized": paths.QUANTIZED, "Checkpoint (float32)": paths.CHECKPOINT}
    with st.sidebar:
        file = st.radio("Model", list(files), key="model")
        st.divider()
        length = st.number_input(
            "Length in tokens", 1, 10_000, DEFAULT_LENGTH, key="length", help=LENGTH
        )
        sequences = st.slider("Sequences", 1, 4, 1, key="sequences")
        seed = st.number_input("Seed", 0, 2**31 - 1, DEFAULT_SEED, key="seed", help=SEED)
        st.divider()
        sampling = sampling_widgets()
    return files[file], Request("", length, sequences, sampling, seed)


def sampling_widgets() -> SamplingSettings:
    """The samplers' settings: presets, and a widget for each value."""
    defaults = SamplingSettings()
    st.pills("How to choose", list(PRESETS), key="preset", on_change=apply_preset)
    default, hint = defaults.temperature, HELP["temperature"]
    temperature = st.slider("Temperature", 0.0, 2.0, default, 0.05, key="temperature", help=hint)
    top_p = st.slider("Top-p", 0.0, 1.0, defaults.top_p, 0.01, key="top_p", help=HELP["top_p"])
    with st.expander("More"):
        default, hint = defaults.top_k, HELP["top_k"]
        top_k = st.number_input("Top-k", 0, 1_000_000, default, key="top_k", help=hint)
        min_p = st.slider("Min-p", 0.0, 1.0, defaults.min_p, 0.01, key="min_p", help=HELP["min_p"])
        default, hint = defaults.repetition_penalty, HELP["repetition_penalty"]
        penalty = st.slider("Repetition penalty", 1.0, 2.0, default, 0.05, key="penalty", help=hint)
        cache = st.number_input("Cache", 0, 30_000, 0, 500, key="cache", help=HELP["cache"])
        stop = st.text_area("Stop strings", key="stop", height=68, help=STOP)
    return SamplingSettings(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=penalty,
        cache=cache,
        stop=tuple(line.replace("\\n", "\n") for line in stop.split("\n") if line),
    )


def apply_preset() -> None:
    """Set the samplers' widgets to the chosen preset's values."""
    state = st.session_state
    if preset := PRESETS.get(state["preset"]):
        state["temperature"], state["top_k"] = preset.temperature, preset.top_k
        state["top_p"], state["min_p"] = preset.top_p, preset.min_p
        state["penalty"] = preset.repetition_penalty


@st.cache_resource(max_entries=2, show_spinner="Reading the model…")
def cached_model(path: Path, mtime_ns: int, size: int, inode: int) -> LoadedModel:
    """The model of a file, read again when the file changes. All sessions share it: read-only."""
    return load_model(path)


def workspace_model(path: Path) -> LoadedModel:
    """The model in a file of the workspace, as the file is now.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is damaged or of another version.
    """
    stat = path.stat()
    return cached_model(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def model_or_stop(path: Path) -> LoadedModel:
    """The model in a file; where there is none, the page says why and ends here."""
    try:
        return workspace_model(path)
    except FileNotFoundError:
        missing = f"`{paths.shown(path)}` does not exist yet."
        st.info(f"{missing} Run `dvc repro` in the project's folder, then reload this page.")
    except UserError as error:
        st.error("This model cannot be used.")
        # As plain text, not Markdown: the message may quote bytes of the file.
        st.text(str(error))
    st.stop()


def written(request: Request, loaded: LoadedModel, prompt: str) -> Iterator[tuple[int, str]]:
    """Continue a prompt: after each token, the number of tokens so far and the new text."""
    rows = generate_steps(loaded, prompt, request.length, request.sampling, request.seed)
    for count, (step,) in enumerate(rows, 1):
        yield count, step.text if step else ""


main()
