"""A mistake of the user is one line and exit code 1; a defect of ours keeps its traceback."""

import signal
import sys

import pytest

from stages.lm.core import stage
from stages.lm.core.errors import UserError
from stages.lm.core.stage import run_stage


@pytest.fixture(autouse=True)
def stay(monkeypatch):
    monkeypatch.setattr(stage, "leave", sys.exit)


@pytest.fixture(autouse=True)
def _keep_handler():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def outcome(main, capsys):
    with pytest.raises(SystemExit) as caught:
        run_stage(main)
    return caught.value.code, capsys.readouterr().err


def raising(error):
    def main():
        raise error

    return main


def test_a_users_mistake_is_one_line_and_exit_code_1(capsys):
    assert outcome(raising(UserError("no text")), capsys) == (1, "error: no text\n")


def test_a_message_is_made_one_line_of_less_than_2000_characters():
    assert str(UserError("in\nfile:\t  x")) == "in file: x"
    long = str(UserError("start " + "x" * 1_000_000 + " end"))
    assert len(long) < 2000 and long.startswith("start x") and long.endswith("x end")


def test_a_key_press_stops_with_130_and_no_traceback(capsys):
    code, said = outcome(raising(KeyboardInterrupt()), capsys)
    assert code == 130 and said.startswith("stopped; run the same command again")


@pytest.mark.parametrize("main", [lambda: 0, raising(UserError("x")), raising(KeyboardInterrupt())])
def test_a_key_press_while_the_process_leaves_changes_nothing(main, capsys):
    outcome(main, capsys)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (143, 143)])
def test_the_exit_code_is_what_the_stage_returns(capsys, returned, code):
    assert outcome(lambda: returned, capsys) == (code, "")


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_stage(lambda: 1 // 0)
