"""What a terminal would obey is shown instead, in error sentences and in what is printed."""

import os
import pty
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import warm
from test_generate import model as model  # a fixture

from stages.lm.core import paths
from stages.lm.core.console import printable, show_controls
from stages.lm.core.errors import UserError

HOSTILE = [
    *map(chr, (*range(9), *range(11, 32), *range(127, 160))),
    *"\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]52;c;Y29weQ==\x1b\\",
    "\x9b31m",
    "\rerror: none",
    "a\x08b",
]
HARMLESS = [
    "",
    "two\nlines\tand a tab",
    "Ünïcode 我们 🙂",
    "\u200e\u05e9\u05dc\u200f",
    "👩‍👩‍👧",
    "\\x1b",
    "a\u00adb",
]
"""Marks of direction and joined emoji are part of honest text."""


@contextmanager
def terminal() -> Iterator[tuple[IO[bytes], Callable[[], str]]]:
    """A terminal's file to write to, and a function that closes it and tells what came."""
    reading, writing = pty.openpty()
    came = bytearray()

    def read() -> None:
        try:
            while data := os.read(reading, 4096):
                came.extend(data)
        except OSError:  # how Linux tells that the other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    file = os.fdopen(writing, "wb")

    def finish() -> str:
        file.close()
        reader.join()
        return came.decode("utf-8").replace("\r\n", "\n")

    yield file, finish
    finish()
    os.close(reading)


@pytest.mark.parametrize("text", HOSTILE)
def test_what_acts_on_a_terminal_is_an_escape(text: str) -> None:
    shown = printable(f"before {text} after")
    assert shown.isprintable() and shown.startswith("before ") and shown.endswith(" after")
    assert str(UserError(f"the key {text!s}x is unknown")).isprintable()


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_a_terminal_shows_what_a_file_gets_as_it_is(tmp_path: Path) -> None:
    text = "".join(HOSTILE) + "end"
    with (tmp_path / "file").open("w+", encoding="utf-8", newline="") as file:
        show_controls(file)
        print(text, end="", file=file)
        file.seek(0)
        assert file.read() == text
    with terminal() as (out, finish), open(out.fileno(), "w", closefd=False) as stream:
        show_controls(stream)
        print(text, file=stream, flush=True)
        assert finish() == printable(text) + "\n"
    show_controls(None)


def test_generated_text_is_escaped_on_a_terminal_and_raw_in_a_pipe(model: Path) -> None:
    words = ("-m", "app.generate", "\x1b[31m\u202e", "--length", "20", "--model", str(model))
    raw = warm.python(paths.ROOT, *words).stdout
    with terminal() as (file, finish):
        assert warm.start(paths.ROOT, *words, output=file).wait() == 0
        assert finish() == printable(raw)
    assert raw.startswith("\x1b[31m\u202e")
