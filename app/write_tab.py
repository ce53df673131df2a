"""The tab that writes: a prompt, the generated texts, and the alternatives to each token."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import streamlit as st
from copied import copied_parts
from marking import draw_text, marked, percent, plain, visible
from streamlit.delta_generator import DeltaGenerator
from writing import (
    TOP_LOGPROBS,
    History,
    Request,
    Result,
    alternatives,
    command,
    go_on,
    in_vocabulary,
)

from stages.lm.core import paths
from stages.lm.inference import generation
from stages.lm.inference.generation import GeneratedToken, WrittenText
from stages.lm.inference.loading import LoadedModel

# The text so far is sent to the browser every REDRAW_SECONDS, and once more as much later for each
# REDRAW_TOKENS on the page, because the browser lays out all of it each time.
REDRAW_SECONDS = 0.1
REDRAW_TOKENS = 500
MAX_REDRAW_SECONDS = 0.5
NATS_AT_FULL_COLOUR = 7
PROMPT_HINT = "The beginning of a text. Left empty, the text starts on a new line."
DOCUMENT_HINT = "The beginning of a text. Left empty, a new text begins."
GO_ON = (
    "With unchanged settings, it goes on as a longer text would have. Nothing follows a stop "
    "string or the end of an answer or of a text."
)
RECORD_HINT = "A prompt in the form of the records this model was trained on."
VIEWS = {"Text": "text", "Probabilities": "probabilities", "Copied parts": "copied"}


def write_tab(loaded: LoadedModel, name: str, request: Request) -> None:
    """Draw the tab: the prompt, the button and the texts."""
    history: History = st.session_state.setdefault("history", History())
    with st.form("prompt form", border=False):
        hint = DOCUMENT_HINT if loaded.opening else PROMPT_HINT
        hint = RECORD_HINT if loaded.answers else hint
        prompt = st.text_area("Prompt", key="prompt", height=140, placeholder=hint)
        label = "Answer" if loaded.answers else "Continue the text"
        pressed = st.form_submit_button(label, key="write", type="primary")
    asked, parent = None, None
    if "asked" in st.session_state:
        make, parent = st.session_state.pop("asked")
        asked = in_vocabulary(loaded.tokenizer, parent, make(request))
    if pressed:
        asked, parent = replace(request, prompt=prompt), None
    # The old text disappears when writing begins. Each slot is filled only once a run: Streamlit
    # may deliver a second filling before the emptying between them.
    meanwhile, below = st.empty(), st.empty()
    if asked:
        start = WrittenText(loaded, asked.sampling, asked.written).start
        lead = loaded.lead(asked.prompt) + start
        with meanwhile.container():
            stream(loaded, history.begin(asked, name, loaded.tokenizer, lead, parent))
        meanwhile.empty()
    if history.shown:
        with below.container():
            branches(history)
            view(loaded, history.shown)
            st.caption(summary(history.shown))
            actions(loaded, history, history.shown, request)


def ask(make: Callable[[Request], Request], parent: Result) -> None:
    """Have the next run of the page make a request of the settings as they are then, and carry it
    out as a branch of `parent`.
    """
    st.session_state["asked"] = make, parent


def stream(loaded: LoadedModel, result: Result) -> None:
    """Generate all sequences together into `result` and draw them as they grow."""
    request = result.request
    # A click on any button ends this run at its next draw; the text so far is kept.
    st.button("Stop", key="stop writing")
    slots = text_slots(request.sequences)
    draw(result, slots)
    asked = (request.prompt, request.length, request.sampling, request.seed)
    start = drawn = time.perf_counter()
    further = (request.indices(), TOP_LOGPROBS, request.written)
    for row in generation.generate_steps(loaded, *asked, *further):
        for written, step in zip(result.steps, row, strict=True):
            written += [step] if step else []
        now = time.perf_counter()
        if not result.first_seconds:
            result.first_seconds = now - start
            draw(result, slots)
        # A run that was stopped ends where it next uses the session's state or draws.
        st.session_state["history"].shown = result
        pause = REDRAW_SECONDS * (1 + result.tokens() / REDRAW_TOKENS)
        if now - drawn > min(pause, MAX_REDRAW_SECONDS):
            draw(result, slots)
            drawn = time.perf_counter()
    result.seconds = time.perf_counter() - start
    draw(result, slots)  # now: the rest of the page takes a while


def text_slots(count: int) -> list[DeltaGenerator]:
    """Empty slots for the texts: one over the full width, more in two columns (one on a phone)."""
    rows = [st.columns(min(count, 2)) for _ in range(0, count, 2)]
    return [cell.empty() for row in rows for cell in row][:count]


def draw(result: Result, slots: list[DeltaGenerator]) -> None:
    """Draw the prompt and the text after it in each slot, without interpreting any markup."""
    for slot, text in zip(slots, result.texts(), strict=True):
        # st.code strips one newline at either end: these two.
        slot.code(f"\n{result.lead}{text}\n", language=None, wrap_lines=True)


def branches(history: History) -> None:
    """Draw a button for every text of this visit, to go back to it."""
    if len(history.results) < 2 or not history.shown:
        return
    # A new widget for each state: setting the value of an existing one would trigger its callback.
    key = f"branch {history.shown.label} of {len(history.results)}"

    def show() -> None:
        chosen = st.session_state[key]
        history.shown = next((r for r in history.results if r.label == chosen), history.shown)

    labels = [each.label for each in history.tree()]
    default = history.shown.label
    st.pills("Texts and their branches", labels, default=default, key=key, on_change=show)


def view(loaded: LoadedModel, result: Result) -> None:
    """Draw the texts plainly, coloured by probability, or with their copied parts marked."""
    kind = VIEWS[
        st.segmented_control("Show", list(VIEWS), default="Text", key="view", required=True)
        or "Text"
    ]
    if kind == "copied":
        copied_parts(loaded, result.texts())
        return
    slots = text_slots(len(result.steps))
    if kind == "text":
        draw(result, slots)
        return
    for slot, steps in zip(slots, result.steps, strict=True):
        with slot:
            draw_text(marked(result.lead) + "".join(coloured(result, step) for step in steps))
    st.caption(
        "The stronger the colour, the less likely the token was. Point at one to see the most "
        "likely tokens at its position."
    )
    branching(loaded, result)


def coloured(result: Result, step: GeneratedToken) -> str:
    """A token as HTML, coloured by its surprisal, with the probabilities as a hint."""
    assert step.before
    others = [(result.tokenizer.shown(each.token), each) for each in alternatives(step)]
    likely = ", ".join(f"{visible(data)} {percent(each.before)}" for data, each in others)
    hint = f"{percent(math.exp(step.before.chosen))}. Most likely here: {likely}"
    return marked(step.text, hint, -step.before.chosen / NATS_AT_FULL_COLOUR)


def branching(loaded: LoadedModel, result: Result) -> None:
    """Draw a choice of token, and its alternatives; a click on one branches from there."""
    sequence = 0
    if len(result.steps) > 1:
        names = range(1, len(result.steps) + 1)
        sequence = st.selectbox("Text", names, key="branch text") - 1
    steps = result.steps[sequence]
    if not steps:
        return
    shown, control = result.tokenizer.shown, result.tokenizer.control

    def token_label(index: int) -> str:
        text = result.lead + "".join(step.text for step in steps[:index])
        before = text[-24:].encode("utf-8", "replace")
        return f"{index + 1} …{visible(before + shown(steps[index].token))}"

    index = st.selectbox("Token", range(len(steps)), key="token", format_func=token_label)
    labels = {
        each.token: f"{plain(visible(shown(each.token)))} "
        f"{percent(each.before)} → {percent(each.after)}"
        for each in alternatives(steps[index])
        if each.token not in control  # nothing follows it
    }

    def branch() -> None:
        token = st.session_state.pop("alternative")
        if token is None:
            return
        before = go_on(result, sequence, index, result.request)
        length = max(1, result.request.length - index - 1)
        longer = replace(before, written=(*before.written, token), length=length)
        ask(lambda _: longer, result)

    st.pills(
        "Continue from here with another token (probability from the model → after the samplers)",
        list(labels),
        key="alternative",
        format_func=labels.__getitem__,
        on_change=branch,
    )


def actions(loaded: LoadedModel, history: History, result: Result, request: Request) -> None:
    """Draw the buttons under the texts, and the terminal command for them."""
    many = len(result.steps) > 1
    with st.container(horizontal=True):
        for index, text in enumerate(result.texts()):
            number = f" {index + 1}" if many else ""
            longer = partial(go_on, result, index, len(result.steps[index]))
            here = in_vocabulary(loaded.tokenizer, result, longer(request))
            st.button(
                f"Go on{number}",
                key=f"go on {index}",
                help=GO_ON,
                on_click=ask,
                args=(longer, result),
                disabled=WrittenText(loaded, request.sampling, here.written).over,
            )
            st.download_button(
                f"Download{number}",
                result.lead + text,
                "text.txt",
                on_click="ignore",
                key=f"download {index}",
            )
        st.button("Undo", key="undo", on_click=history.undo)
    with st.expander("The same in a terminal"):
        st.code(command(result, result.model, paths.shown(paths.QUANTIZED)), language=None)


def summary(result: Result) -> str:
    """A line on the tokens, the speed and the settings of the texts."""
    request, chosen = result.request, result.request.sampling
    speed = "stopped early"
    if result.seconds:
        speed = f"{result.tokens() / result.seconds:,.0f} tokens/s"
    extras = {
        f"min-p {chosen.min_p:g}": chosen.min_p > 0,
        f"repetition penalty {chosen.repetition_penalty:g}": chosen.repetition_penalty != 1,
        f"cache {chosen.cache:,}": chosen.cache > 0,
        f"{len(chosen.stop)} stop strings": len(chosen.stop) > 0,
    }
    return (
        f"{result.tokens():,} tokens, first after {1000 * result.first_seconds:,.0f} ms, {speed} · "
        f"{result.model}, temperature {chosen.temperature:g}, top-k {chosen.top_k or 'off'}, "
        f"top-p {chosen.top_p:g}, "
        + "".join(f"{text}, " for text, on in extras.items() if on)
        + f"seed {request.seed}"
    )
