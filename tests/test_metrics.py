"""Losses in four units, tables that draw as they should, a log that holds each line once."""

import math

import pytest

from stages.lm.core.errors import UserError
from stages.lm.model.metrics import append_missing_lines, duration, loss_units, timestamp, write_tsv


def test_a_bit_a_byte_is_that_in_every_unit():
    units = loss_units(nats=400 * math.log(2), tokens=100, size=400)
    assert units["bits_per_byte"] == 1.0
    assert units["nats_per_byte"] == round(math.log(2), 6)
    assert units["loss"] == round(4 * math.log(2), 6)
    assert units["perplexity"] == 16.0


def test_the_units_per_byte_do_not_depend_on_the_tokens():
    few, many = loss_units(500.0, 10, 1000), loss_units(500.0, 900, 1000)
    assert few["bits_per_byte"] == many["bits_per_byte"] and few["loss"] != many["loss"]


def test_a_perplexity_beyond_all_numbers_is_finite():
    assert math.isfinite(loss_units(1e9, 1, 1)["perplexity"])


def test_a_missing_cell_is_nan_and_never_empty(tmp_path):
    rows = [{"step": 1, "loss": 4.25, "more": 5}, {"step": 200, "val": 1e-7}]
    write_tsv(tmp_path / "table.tsv", ("step", "loss", "val"), rows)
    assert (tmp_path / "table.tsv").read_bytes() == (
        b"step\tloss\tval\n1\t4.25\tnan\n200\tnan\t1e-07\n"
    )


def test_a_table_without_rows_has_its_heading(tmp_path):
    write_tsv(tmp_path / "table.tsv", ("step", "loss"), [])
    assert (tmp_path / "table.tsv").read_text() == "step\tloss\n"


def test_appending_twice_changes_nothing(tmp_path):
    log = tmp_path / "deep" / "training.log"
    for lines in (["one"], ["one", "two"], ["one", "two"], []):
        append_missing_lines(log, lines)
    assert log.read_text() == "one\ntwo\n"


def test_what_others_wrote_stays(tmp_path):
    log = tmp_path / "training.log"
    log.write_text("earlier\n")
    append_missing_lines(log, ["one"])
    assert log.read_text() == "earlier\none\n"


def test_half_a_line_of_a_killed_run_does_not_spoil_the_next(tmp_path):
    log = tmp_path / "training.log"
    log.write_bytes(b"one\ntw")
    for _ in range(2):
        append_missing_lines(log, ["one", "two", "three"])
    assert log.read_text() == "one\ntw\ntwo\nthree\n"


def test_a_log_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "training.log").mkdir()
    with pytest.raises(UserError, match=r"training\.log could not be written"):
        append_missing_lines(tmp_path / "training.log", ["one"])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3_661, "1:01:01")]
)
def test_a_duration_is_hours_minutes_and_seconds(seconds, text):
    assert duration(seconds) == text


def test_a_timestamp_has_seconds_and_no_more():
    assert len(timestamp()) == len("2026-01-31 12:00:00")
