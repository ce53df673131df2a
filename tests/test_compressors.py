"""The yardstick charges a text for what is new in it, after what was there to learn from."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from pyppmd import Ppmd7Decoder

from stages import evaluate
from stages.lm.data.token_text import TokenText
from stages.lm.evaluation import compressors
from stages.lm.evaluation.compressors import COMPRESSORS, baselines

WORDS = [bytes(random.Random(seed).choices(b"etaoinshrdlu", k=5)) for seed in range(50)]


def prose(seed, words):
    return b" ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_noise_costs_eight_bits_a_byte(name):
    noise = random.Random(0).randbytes(20_000)
    assert baselines(noise[:10_000], noise[10_000:])[name] == pytest.approx(8, abs=0.7)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_text_of_the_same_kind_costs_less_after_training_text(name):
    held_out = prose(1, 300)
    assert baselines(prose(2, 3000), held_out)[name] < baselines(b"", held_out)[name]


def test_ppmd_is_the_best_of_them_on_words():
    figures = baselines(prose(2, 3000), prose(1, 3000))
    assert min(figures, key=figures.__getitem__) == "ppmd" and 0.5 < figures["ppmd"] < 3


def test_what_ppmd_writes_can_be_read_back():
    text = prose(3, 1000)
    decoder = Ppmd7Decoder(6, 256 << 20)
    assert decoder.decode(COMPRESSORS["ppmd"](text), len(text)) == text


def test_only_the_end_of_the_training_text_is_shown(monkeypatch):
    monkeypatch.setattr(compressors, "WINDOW_BYTES", 2000)
    training, held_out = prose(2, 3000), prose(1, 300)
    assert baselines(training, held_out) == baselines(training[-2000:], held_out)


def test_compressors_get_the_bytes_that_models_are_scored_on(monkeypatch):
    monkeypatch.setattr(evaluate, "WINDOW_BYTES", 4)
    monkeypatch.setattr(evaluate, "baselines", lambda training, held_out: (training, held_out))
    letters = [bytes([byte]) for byte in range(256)]
    tokenizer = SimpleNamespace(tokens=letters)
    training = TokenText(np.frombuffer(b"training", np.uint8), letters)
    parts = {
        split: SimpleNamespace(tokens=np.frombuffer(data, np.uint8))
        for split, data in {"val": b"valid", "test": b"test"}.items()
    }
    assert evaluate.compressor_figures(training, parts, tokenizer) == (b"ning", b"validtest")
