"""The page: a prompt in, the model's text out, and what is known about the model.

Start it with `streamlit run app/app.py`. Streamlit runs this file anew at every click; what must
outlive a click is in `st.session_state`. Models and decoding are the library's.
"""

import csv
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import altair as alt
import streamlit as st
from marking import draw_text, marked
from read_tab import read_tab
from streamlit.delta_generator import DeltaGenerator

from stages.lm import paths
from stages.lm.copying import SPAN_BYTES, Copy, copies
from stages.lm.errors import UserError
from stages.lm.files import read_json
from stages.lm.loading import LoadedModel, load_model
from stages.lm.sampling import DEFAULT_LENGTH, DEFAULT_SEED, SamplingSettings, stream_text

# How often the browser gets the text so far: every token of a long text would choke it. (A string
# here would land on the page: Streamlit shows expressions that stand alone.)
REDRAW_SECONDS = 0.05
EMPTY = "The beginning of a text. Empty starts on a new line."
HEAT = "Low keeps to the likely, high dares more. 0 always takes the most likely token."
TOP_K = "Choose among this many most likely tokens. 0 is off."
TOP_P = "Choose among the fewest tokens whose probabilities reach this sum. 1 is off."
SAME = "The same prompt, settings and seed give the same text, here and in the terminal."


@dataclass
class Request:
    """What the widgets ask for."""

    prompt: str
    length: int
    sequences: int
    sampling: SamplingSettings
    seed: int


@dataclass
class Result:
    """A request and the texts written for it so far."""

    request: Request
    model: str
    texts: list[str]
    seconds: float | None = None
    """Time the whole of it took; None until then."""


def main() -> None:
    """The whole page."""
    # No icon: the browser would fetch it from another server.
    st.set_page_config("Write with your model", layout="wide")
    st.title("Write with your model")
    st.markdown("Give the beginning of a text; the language model you trained goes on with it.")
    path, request = sidebar()
    loaded = model_or_stop(path)
    writing, reading, about = st.tabs(["Write", "Read", "About this model"])
    with writing:
        write_tab(loaded, paths.shown(path), request)
    with reading:
        read_tab(loaded)
    with about:
        about_tab(loaded, paths.shown(path))


def sidebar() -> tuple[Path, Request]:
    """The model's file and a request that still lacks its prompt."""
    files = {"Quantized": paths.QUANTIZED, "Checkpoint (float32)": paths.CHECKPOINT}
    ours = SamplingSettings()
    with st.sidebar:
        file = st.radio("Model", list(files), key="model")
        st.divider()
        length = st.number_input("Length in tokens", 1, 10_000, DEFAULT_LENGTH, key="length")
        sequences = st.slider("Sequences", 1, 4, 1, key="sequences")
        st.divider()
        heat = st.slider("Temperature", 0.0, 2.0, ours.temperature, 0.05, key="heat", help=HEAT)
        top_k = st.number_input("Top-k", 0, 1_000_000, ours.top_k, key="top_k", help=TOP_K)
        top_p = st.slider("Top-p", 0.0, 1.0, ours.top_p, 0.01, key="top_p", help=TOP_P)
        seed = st.number_input("Seed", 0, 2**31 - 1, DEFAULT_SEED, key="seed", help=SAME)
    sampling = SamplingSettings(temperature=heat, top_k=top_k, top_p=top_p)
    return files[file], Request("", length, sequences, sampling, seed)


@st.cache_resource(max_entries=2, show_spinner="Reading the model…")
def cached_model(path: Path, mtime_ns: int, size: int, inode: int) -> LoadedModel:
    """The model in a file of this state; shared by every visitor, so nobody may change it."""
    return load_model(path)


def model_or_stop(path: Path) -> LoadedModel:
    """The model in a file as it is now. Without one the page says why and ends here."""
    try:
        state = path.stat()
        return cached_model(path, state.st_mtime_ns, state.st_size, state.st_ino)
    except FileNotFoundError:
        missing = f"`{paths.shown(path)}` does not exist yet."
        st.info(f"{missing} Run `dvc repro` in the project's folder, then reload this page.")
    except UserError as error:
        st.error("This model cannot be used.")
        # As plain text: the sentence may quote what a foreign file holds.
        st.text(str(error))
    st.stop()


def write_tab(loaded: LoadedModel, name: str, request: Request) -> None:
    """Prompt, button and the latest texts."""
    with st.form("prompt form", border=False):
        request.prompt = st.text_area("Prompt", key="prompt", height=140, placeholder=EMPTY)
        pressed = st.form_submit_button("Continue the text", key="write", type="primary")
    if pressed:
        # Stored before it is done: whoever touches a setting meanwhile keeps what is there.
        st.session_state["result"] = Result(request, name, [""] * request.sequences)
        stream(loaded, st.session_state["result"])
    elif result := st.session_state.get("result"):
        draw(result, text_places(len(result.texts)))
    if result := st.session_state.get("result"):
        st.caption(summary(result))
        origin(loaded, result)


def stream(loaded: LoadedModel, result: Result) -> None:
    """Generate all sequences side by side into `result` and onto the page."""
    request = result.request
    places = text_places(request.sequences)
    draw(result, places)
    asked = (request.prompt, request.length, request.sampling, request.seed)
    streams = [stream_text(loaded, *asked, index) for index in range(request.sequences)]
    start = drawn = time.perf_counter()
    for pieces in zip_longest(*streams, fillvalue=""):
        result.texts = [text + piece for text, piece in zip(result.texts, pieces, strict=True)]
        # Streamlit ends a run that was stopped where it uses the session's state or draws.
        st.session_state["result"] = result
        if time.perf_counter() - drawn > REDRAW_SECONDS:
            draw(result, places)
            drawn = time.perf_counter()
    result.seconds = time.perf_counter() - start
    draw(result, places)


def text_places(count: int) -> list[DeltaGenerator]:
    """Where the texts go: one over the full width, more in two columns (one on a phone)."""
    rows = [st.columns(min(count, 2)) for _ in range(0, count, 2)]
    return [cell.empty() for row in rows for cell in row][:count]


def draw(result: Result, places: list[DeltaGenerator]) -> None:
    """Put the prompt and what follows it into each place, as text that cannot act."""
    for place, text in zip(places, result.texts, strict=True):
        # st.code drops one newline at either end; these two are for it to drop.
        body = f"\n{result.request.prompt}{text}\n"
        place.code(body, language=None, wrap_lines=True)


def origin(loaded: LoadedModel, result: Result) -> None:
    """Which parts of the texts stand word for word in the training text, and where."""
    with st.expander(
        "What is copied from the training text?", key="origin", on_change="rerun"
    ) as box:
        if not box.open:
            return
        size = training_bytes(loaded)
        if size is None:
            st.text("The text this model was trained on is not in data/input.txt.")
            return
        for text in result.texts:
            data = text.encode("utf-8", "replace")
            found = copies(data, paths.INPUT, size)
            draw_text(marked_copies(data, found))
            covered = sum(end - start for start, end, _ in parts(found))
            st.caption(
                f"{100 * covered / max(1, len(data)):.0f} % stands word for word in the training "
                f"text, in {len(found)} parts of {SPAN_BYTES} bytes or more."
            )


def training_bytes(loaded: LoadedModel) -> int | None:
    """How much of `data/input.txt` the model was trained on; None where it is another text."""
    with suppress(KeyError, TypeError, OSError):
        splits = loaded.provenance["data"]["splits"]
        if paths.INPUT.stat().st_size == sum(split["bytes"] for split in splits.values()):
            return int(splits["train"]["bytes"])
    return None


def parts(found: list[Copy]) -> Iterator[tuple[int, int, Copy]]:
    """What each copy adds to those before it: start, end and the copy."""
    end = 0
    for copy in found:
        start, end = max(end, copy.start), copy.start + copy.length
        yield start, end, copy


def marked_copies(data: bytes, found: list[Copy]) -> str:
    """A text as HTML with its copied parts marked."""
    body, done = "", 0
    for start, end, copy in parts(found):
        start, end = character_start(data, start), character_start(data, end)
        hint = f"{copy.length:,} bytes, as at byte {copy.place:,} of the training text"
        body += marked(data[done:start].decode("utf-8", "replace"))
        body += marked(data[start:end].decode("utf-8", "replace"), hint, 0.4)
        done = end
    return body + marked(data[done:].decode("utf-8", "replace"))


def character_start(data: bytes, place: int) -> int:
    """The beginning of the character that the byte at `place` is part of."""
    while 0 < place < len(data) and data[place] & 0xC0 == 0x80:
        place -= 1
    return place


def summary(result: Result) -> str:
    """One line on how the texts came to be."""
    request, chosen = result.request, result.request.sampling
    tokens = request.length * request.sequences
    outcome = "stopped early" if not result.seconds else f"{tokens / result.seconds:,.0f} tokens/s"
    return (
        f"{tokens:,} tokens, {outcome} · {result.model}, temperature {chosen.temperature:g}, "
        f"top-k {chosen.top_k or 'off'}, top-p {chosen.top_p:g}, seed {request.seed}"
    )


def about_tab(loaded: LoadedModel, name: str) -> None:
    """The model's card: what it is, what it was trained on, how good it is."""
    config = loaded.model.config
    st.caption(
        f"{name}: {config.arch}, {config.layers} layers of width {config.width}, vocabulary of "
        f"{config.vocab_size:,} tokens, sees {config.context:,} tokens at once"
    )
    figures = {"Parameters": short(loaded.model.parameter_count()), "Weights": loaded.scheme}
    figures["File"] = short(loaded.file_bytes) + "B"
    metric_row(figures | training_figures(loaded.provenance))
    shown_if_there(paths.EVALUATE_METRICS, lambda: held_out(loaded))
    shown_if_there(paths.LOSS_CURVE, loss_chart)


def training_figures(provenance: dict[str, Any]) -> dict[str, str]:
    """What the file tells about its training; nothing where it tells nothing."""
    figures = {}
    with suppress(KeyError, TypeError, ArithmeticError):
        train = provenance["data"]["splits"]["train"]
        figures["Training text"] = short(train["bytes"]) + "B"
        figures["Training tokens"] = short(train["tokens"])
    with suppress(KeyError, TypeError):
        figures["Epochs trained"] = str(provenance["metrics"]["epochs"])
        figures["Best epoch, kept"] = str(provenance["metrics"]["best_epoch"])
    return figures


def metric_row(figures: dict[str, str]) -> None:
    """Figures under their names, as many beside each other as there is room for."""
    with st.container(horizontal=True):
        for name, value in figures.items():
            st.metric(name, value, border=True, width=170)


def held_out(loaded: LoadedModel) -> None:
    """Bits per byte on text the model never saw, beside those of compressors."""
    st.subheader("On held-out text")
    results = read_json(paths.EVALUATE_METRICS)
    ours = results["float" if loaded.scheme == "float32" else "quantized"]["held_out"]
    bits = {"This model": ours["bits_per_byte"]} | results.get("baselines", {})
    metric_row({name: f"{value:.3f}" for name, value in bits.items()})
    st.caption("Bits for each byte of text that was not trained on; lower is better.")
    if copied := results.get("memorisation"):
        st.caption(
            f"In spans of {copied['span_bytes']} bytes or more, "
            f"{100 * copied['copied_share']:.1f} % of the text sampled from the quantized model "
            f"and {100 * copied['held_out_copied_share']:.1f} % of the held-out text stand word "
            "for word in the training text."
        )


def loss_chart() -> None:
    """Training and validation loss over the steps."""
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


def shown_if_there(path: Path, draw: Callable[[], None]) -> None:
    """Draw a file's part of the card; a missing file has none, a damaged one a sentence."""
    if not path.exists():
        return
    try:
        draw()
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        st.warning(f"`{paths.shown(path)}` cannot be read. Run `dvc repro` to make it again.")


def short(number: int) -> str:
    """A number in four digits and the prefix of its unit, such as `3.993 M`."""
    power = min(3, (len(str(number)) - 1) // 3)
    return f"{number / 1000**power:.4g} {('', 'k', 'M', 'G')[power]}"


main()
