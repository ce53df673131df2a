"""The tab that writes: a prompt in, texts out, and how each of their tokens came to be."""

import math
import time
from dataclasses import replace

import streamlit as st
from copied import copied_parts
from marking import draw_text, marked, percent, visible
from streamlit.delta_generator import DeltaGenerator
from writing import LIKELIEST, History, Request, Result, alternatives, command, written_before

from stages.lm.core import paths
from stages.lm.inference import generation
from stages.lm.inference.generation import GeneratedToken
from stages.lm.inference.loading import LoadedModel
from stages.lm.text.records import RECORD_END

# How often the browser gets the text so far, which it lays out anew each time: as much later again
# for so many tokens on the page. (A string here would land on the page: Streamlit shows expressions
# that stand alone.)
REDRAW_SECONDS = 0.1
REDRAW_TOKENS = 500
LONGEST_PAUSE = 0.5
NATS_AT_FULL_COLOUR = 7
EMPTY = "The beginning of a text. Empty starts on a new line."
QUESTION = "What is to be answered, in the form of the prompts this model was trained on."
VIEWS = {"Text": "text", "Probabilities": "odds", "Copied parts": "copied"}


def write_tab(loaded: LoadedModel, name: str, request: Request) -> None:
    """Prompt, button and the texts that are shown."""
    history: History = st.session_state.setdefault("history", History())
    with st.form("prompt form", border=False):
        example = QUESTION if loaded.answers else EMPTY
        prompt = st.text_area("Prompt", key="prompt", height=140, placeholder=example)
        label = "Answer" if loaded.answers else "Continue the text"
        pressed = st.form_submit_button(label, key="write", type="primary")
    asked, parent = st.session_state.pop("asked", (None, None))
    if pressed:
        asked, parent = replace(request, prompt=prompt), None
    # What was shown goes when the writing begins. Each place is filled once a run: Streamlit may
    # put what comes to a place a second time before what emptied it.
    meanwhile, below = st.empty(), st.empty()
    if asked:
        with meanwhile.container():
            lead = loaded.lead(asked.prompt) + asked.written
            stream(loaded, history.begin(asked, name, lead, parent))
        meanwhile.empty()
    if history.shown:
        with below.container():
            branches(history)
            view(loaded, history.shown)
            st.caption(summary(history.shown))
            actions(history, history.shown, request)


def ask(request: Request, parent: Result) -> None:
    """Have the next run of the page write a branch of `parent`."""
    st.session_state["asked"] = request, parent


def stream(loaded: LoadedModel, result: Result) -> None:
    """Generate all sequences together into `result` and onto the page."""
    request = result.request
    # Any button ends this run where it draws next; what has been written is kept.
    st.button("Stop", key="stop writing")
    places = text_places(request.sequences)
    draw(result, places)
    asked = (request.prompt, request.length, request.sampling, request.seed)
    start = drawn = time.perf_counter()
    indices = range(request.sequences)
    for row in generation.generate_steps(loaded, *asked, indices, LIKELIEST, request.written):
        for written, step in zip(result.steps, row, strict=True):
            written += [step] if step else []
        now = time.perf_counter()
        if not result.first_seconds:
            result.first_seconds = now - start
            draw(result, places)
        # Streamlit ends a run that was stopped where it uses the session's state or draws.
        st.session_state["history"].shown = result
        pause = REDRAW_SECONDS * (1 + result.tokens() / REDRAW_TOKENS)
        if now - drawn > min(pause, LONGEST_PAUSE):
            draw(result, places)
            drawn = time.perf_counter()
    result.seconds = time.perf_counter() - start
    draw(result, places)  # at once: the rest of the page takes a while


def text_places(count: int) -> list[DeltaGenerator]:
    """Where the texts go: one over the full width, more in two columns (one on a phone)."""
    rows = [st.columns(min(count, 2)) for _ in range(0, count, 2)]
    return [cell.empty() for row in rows for cell in row][:count]


def draw(result: Result, places: list[DeltaGenerator]) -> None:
    """Put the prompt and what follows it into each place, as text that cannot act."""
    for place, text in zip(places, result.texts(), strict=True):
        # st.code drops one newline at either end; these two are for it to drop.
        place.code(f"\n{result.lead}{text}\n", language=None, wrap_lines=True)


def branches(history: History) -> None:
    """Every text of this visit, to go back to."""
    if len(history.results) < 2 or not history.shown:
        return
    # A widget of its own for each state: one that had to follow the state would also report it.
    key = f"branch {history.shown.label} of {len(history.results)}"

    def show() -> None:
        chosen = st.session_state[key]
        history.shown = next((r for r in history.results if r.label == chosen), history.shown)

    labels = [each.label for each in history.tree()]
    default = history.shown.label
    st.pills("Texts and their branches", labels, default=default, key=key, on_change=show)


def view(loaded: LoadedModel, result: Result) -> None:
    """The texts as they are, by the odds of each token, or by what is copied in them."""
    kind = VIEWS[
        st.segmented_control("Show", list(VIEWS), default="Text", key="view", required=True)
        or "Text"
    ]
    if kind == "copied":
        copied_parts(loaded, result.texts())
        return
    places = text_places(len(result.steps))
    if kind == "text":
        draw(result, places)
        return
    for place, written in zip(places, result.steps, strict=True):
        with place:
            draw_text(marked(result.lead) + "".join(coloured(loaded, s) for s in written))
    st.caption(
        "The stronger the colour, the less likely the token was. Point at one to see what else "
        "could have come."
    )
    branching(loaded, result)


def coloured(loaded: LoadedModel, step: GeneratedToken) -> str:
    """A token as HTML, coloured by the model's surprise, its odds in the hint."""
    assert step.before
    others = [(loaded.tokenizer.tokens[each.token], each) for each in alternatives(step)]
    odds = ", ".join(f"{visible(data)} {percent(each.before)}" for data, each in others)
    hint = f"{percent(math.exp(step.before.chosen))}. Likeliest here: {odds}"
    return marked(step.text, hint, -step.before.chosen / NATS_AT_FULL_COLOUR)


def branching(loaded: LoadedModel, result: Result) -> None:
    """A token to look at, and the others that could stand in its place."""
    sequence = 0
    if len(result.steps) > 1:
        names = range(1, len(result.steps) + 1)
        sequence = st.selectbox("Text", names, key="branch text") - 1
    written = result.steps[sequence]
    if not written:
        return
    tokens = loaded.tokenizer.tokens

    def named(place: int) -> str:
        text = result.lead + "".join(step.text for step in written[:place])
        before = text[-24:].encode("utf-8", "replace")
        return f"{place + 1} …{visible(before + written[place].data)}"

    place = st.selectbox("Token", range(len(written)), key="place", format_func=named)
    labels = {
        each.token: f"{visible(tokens[each.token])} {percent(each.before)} → {percent(each.after)}"
        for each in alternatives(written[place])
        if not (loaded.answers and tokens[each.token] == RECORD_END)  # nothing follows it
    }

    def branch() -> None:
        token = st.session_state.pop("alternative")
        if token is None:
            return
        start = written_before(result, sequence, place) + tokens[token].decode("utf-8", "replace")
        length = max(1, result.request.length - place - 1)
        ask(replace(result.request, written=start, length=length, sequences=1), result)

    st.pills(
        "Go on from here with another token (its probability from the model → after the samplers)",
        list(labels),
        key="alternative",
        format_func=labels.__getitem__,
        on_change=branch,
    )


def actions(history: History, result: Result, request: Request) -> None:
    """What can be done with the texts: go on, take back, keep, repeat."""
    many = len(result.steps) > 1
    with st.container(horizontal=True):
        for index, text in enumerate(result.texts()):
            whole, so_far = result.lead + text, result.request.written + text
            number = f" {index + 1}" if many else ""
            longer = replace(request, prompt=result.request.prompt, written=so_far, sequences=1)
            st.button(f"Go on{number}", key=f"go on {index}", on_click=ask, args=(longer, result))
            st.download_button(
                f"Download{number}", whole, "text.txt", on_click="ignore", key=f"download {index}"
            )
        st.button("Undo", key="undo", on_click=history.undo)
    with st.expander("The same in a terminal"):
        st.code(command(result, result.model, paths.shown(paths.QUANTIZED)), language=None)


def summary(result: Result) -> str:
    """One line on how the texts came to be."""
    request, chosen = result.request, result.request.sampling
    speed = "stopped early"
    if result.seconds:
        speed = f"{result.tokens() / result.seconds:,.0f} tokens/s"
    more = {
        f"min-p {chosen.min_p:g}": chosen.min_p > 0,
        f"repetition penalty {chosen.repetition_penalty:g}": chosen.repetition_penalty != 1,
        f"{len(chosen.stop)} stop strings": len(chosen.stop) > 0,
    }
    return (
        f"{result.tokens():,} tokens, first after {1000 * result.first_seconds:,.0f} ms, {speed} · "
        f"{result.model}, temperature {chosen.temperature:g}, top-k {chosen.top_k or 'off'}, "
        f"top-p {chosen.top_p:g}, "
        + "".join(f"{text}, " for text, on in more.items() if on)
        + f"seed {request.seed}"
    )
