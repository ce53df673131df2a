"""Any text and any settings work or are refused in a sentence: part of `benchmarks/fuzz.py`."""

import random
from functools import partial

import fuzz
import pytest


def assert_each_held(case, numbers):
    failed = [result for result in map(case, numbers) if result.startswith("FAILED")]
    assert not failed


NUMBERS = random.Random(0).sample(range(300, 2000), 12)


@pytest.mark.parametrize(
    "numbers", [[1, 2, 100, NUMBERS[0]], pytest.param([0, *NUMBERS[1:]], marks=pytest.mark.slow)]
)
def test_any_text_trains_or_is_refused_in_a_sentence(tmp_path, numbers):
    assert_each_held(partial(fuzz.text_case, tmp_path / "project", 1), numbers)


def test_any_bad_setting_is_refused_by_corpus_in_a_sentence_that_names_it(tmp_path):
    cases = fuzz.settings_cases()
    numbers = random.Random(0).sample(range(len(cases)), 60)
    assert_each_held(partial(fuzz.settings_case, tmp_path / "project", cases), numbers)
