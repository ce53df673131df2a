"""The tab that talks with a model that was trained on records or conversations."""

import streamlit as st
from writing import Request

from stages.lm.core.errors import UserError
from stages.lm.inference.generation import chat_ids, generate_steps
from stages.lm.inference.loading import LoadedModel
from stages.lm.text.chat_template import Message


def chat_tab(loaded: LoadedModel, request: Request) -> None:
    """Draw the conversation so far and, below, what asks for the next message."""
    messages: list[Message] = st.session_state.setdefault("messages", [])
    talk = st.container()
    said = st.chat_input("A message", key="message")
    if st.button("New conversation", key="new conversation"):
        messages.clear()
    if said:
        messages.append(("user", said))
    with talk:
        for role, content in messages:
            # As plain text: no markup in it acts.
            st.chat_message(role).text(content)
        if said:
            with st.chat_message("assistant"):
                answer(loaded, request, messages)


def answer(loaded: LoadedModel, request: Request, messages: list[Message]) -> None:
    """Write the answer to the messages, draw it as it grows, and add it to them."""
    slot, text = st.empty(), ""
    try:
        ids = chat_ids(loaded, messages)
        for (step,) in generate_steps(loaded, ids, request.length, request.sampling, request.seed):
            text += step.text if step else ""
            slot.text(text)
    except UserError as error:
        messages.pop()
        slot.text(str(error))
        return
    messages.append(("assistant", text))
