"""The progress bar of a training run that goes on now."""

import time

import streamlit as st

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_json
from stages.lm.model.metrics import duration

STALE_SECONDS = 60
"""A run writes its progress every second; one that has not for so long was killed."""


def training() -> tuple[float, str] | None:
    """The share of steps that the current run has done, and a line of text; None without a run."""
    try:
        # A time to come is no newer: the clock was set back since.
        if abs(time.time() - paths.PROGRESS.stat().st_mtime) > STALE_SECONDS:
            return None
        run = read_json(paths.PROGRESS)
        left = run["seconds_left"]
        return max(0.0, min(1.0, run["step"] / run["steps"])), (
            f"Training: epoch {run['epoch']:d} of {run['epochs']:d}, step {run['step']:,} of "
            f"{run['steps']:,}, loss {run['loss']:.3f}, {run['tokens_per_second']:,.0f} tokens/s"
            + (f", {duration(left)} left" if left else "")
        )
    except (OSError, UserError, ArithmeticError, LookupError, TypeError, ValueError):
        return None


@st.fragment(run_every=2)
def training_progress() -> None:
    """Draw a bar while a run goes on; redraw the page when the run has ended."""
    run = training()
    if run:
        st.progress(*run)
    elif st.session_state.get("was training"):
        st.session_state["was training"] = False
        st.rerun()
    st.session_state["was training"] = run is not None
