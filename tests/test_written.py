"""A text that is written in parts is the text that is written at once."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from stages.lm.core.errors import UserError
from stages.lm.data.meta import TokenizerMeta
from stages.lm.inference import generation
from stages.lm.inference.decoder import PackedDecoder, TorchDecoder, make_decoder
from stages.lm.inference.engine import EngineDecoder
from stages.lm.inference.generation import (
    SamplingSettings,
    WrittenText,
    generate_steps,
    sequence_generator,
)
from stages.lm.inference.loading import LoadedModel
from stages.lm.inference.samplers import draw
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer

BYTES = BytePairTokenizer({bytes([byte]): byte for byte in range(256)}, PATTERNS["gpt-2"], "bytes")
CONTEXT = 16
LENGTH = 40  # drops the older half of the context several times
ANSWERS = {"data": {"records": {"train": 1}}}
DECODERS = {"engine": EngineDecoder, "packed": PackedDecoder, "torch": TorchDecoder}
SETTINGS = {
    "plain": SamplingSettings(temperature=1.0, top_p=1.0),
    "greedy": SamplingSettings(temperature=0, repetition_penalty=1.1),
    "everything": SamplingSettings(
        temperature=1.5, top_k=90, top_p=0.95, min_p=0.001, repetition_penalty=1.3
    ),
    "cache": SamplingSettings(temperature=1.0, cache=25),  # soon full
    "stops": SamplingSettings(temperature=3.0, stop=("e", "ab", "\x07\x05")),
}
CUTS = [
    (1, 14, 15, 16),
    (17, 39),
    pytest.param(tuple(range(2, LENGTH, 3)), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=DECODERS)
def loaded(request, make_model):
    """A model over single bytes, which mostly writes broken and begun characters."""
    model = make_model(
        vocab_size=256, context=CONTEXT, layers=1, width=64, head_size=16, ff_width=64
    )
    parts = TokenizerMeta("bytes", BYTES.pattern).stored(BYTES.to_text())
    checkpoint = Checkpoint(model.config, model.state_dict(), parts, {})
    weights = quantize_checkpoint(checkpoint, "int8").tensors
    loaded = LoadedModel(model.config, lambda: model, BYTES, "int8", {}, 0, weights)
    if request.param == "engine" and loaded.engine is None:
        pytest.skip("no engine can be compiled here")
    if request.param != "engine":
        loaded = replace(loaded, weights=weights if request.param == "packed" else None)
        vars(loaded)["engine"] = None
    assert type(make_decoder(loaded)) is DECODERS[request.param]
    return loaded


def answering(loaded):
    """The model, as if it had been trained on records."""
    return replace(loaded, provenance=ANSWERS, tokenizer=BYTES.for_conversations())


@pytest.fixture(scope="module", params=["我", "我" * 7, ""], ids=["short", "long", "answer"])
def model_and_prompt(request, loaded):
    """A prompt within the context, one beyond it, and a model that answers."""
    return (loaded if request.param else answering(loaded)), request.param


@pytest.fixture(scope="module", params=SETTINGS)
def whole(request, model_and_prompt):
    """A model, a prompt, settings, and the steps of three sequences written at once."""
    loaded, prompt = model_and_prompt
    settings = SETTINGS[request.param]
    rows = list(generate_steps(loaded, prompt, LENGTH, settings, 7, range(3), 2))
    columns = [[step for step in column if step] for column in zip(*rows, strict=True)]
    return loaded, prompt, settings, columns


def choices(steps):
    """All of the steps but their texts, which differ where a part ends."""
    return [(step.token, step.data, step.before, step.after) for step in steps]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_parts_are_the_whole_to_the_last_bit(whole, cuts):
    loaded, prompt, settings, columns = whole
    index = len(cuts) % 3
    steps = []
    for begin, end in pairwise((0, *cuts, LENGTH)):
        written = [step.token for step in steps]
        text = WrittenText(loaded, settings, written).start
        for (step,) in generate_steps(
            loaded, prompt, end - begin, settings, 7, (index,), 2, written
        ):
            steps.append(step)
            text += step.text
    assert choices(steps) == choices(columns[index])
    assert text == "".join(step.text for step in columns[index])


def test_sequences_branch_together_from_what_was_written(loaded):
    settings, written = SETTINGS["everything"], [*"ü我".encode(), 0xF0] * 4
    rows = generate_steps(loaded, "a", 9, settings, 7, range(3), 1, written)
    for index, column in enumerate(zip(*rows, strict=True)):
        alone = generate_steps(loaded, "a", 9, settings, 7, (index,), 1, written)
        assert list(column) == [step for (step,) in alone]


@pytest.mark.parametrize("count", [0, 1, 7, 15, 16, 17, 1000])
def test_a_token_takes_one_random_number(count):
    one, other = sequence_generator(3, 1), sequence_generator(3, 1)
    for _ in range(count):
        draw(torch.zeros(5, dtype=torch.double), one)
    torch.rand(count, generator=other, dtype=torch.double)
    assert torch.equal(one.get_state(), other.get_state())


class Speaking:
    """A decoder of one sequence that begins with one token and goes on with known ones."""

    context, splits_freely = 1000, False

    def __init__(self, data):
        self.data, self.length = data, 0

    def feed(self, rows):
        self.length += len(rows[0])
        logits = torch.full((1, 256), -1000.0)
        logits[0, self.data[self.length - 1]] = 0
        return logits


@pytest.mark.parametrize(
    ("data", "stops", "text"),
    [
        ("a🙂bü我 end 🙃".encode(), (), "a🙂bü我 end 🙃"),
        (b"ab<en", ("<end>",), "ab<en"),
        (b"one\n\ntwo", ("\n\n",), "one"),
        ("a🙃b🙂c".encode(), ("🙂",), "a🙃b"),
        ("<<e\u0301<🙂".encode(), ("<\u0301", "<🙂!"), "<<e\u0301<🙂"),
        (b"\xf0\x9f\x99a\xe2\x82", ("a\ufffd",), "\ufffda\ufffd"),
        (b"\xe6\x88" + b"END", ("END",), "\ufffd"),
    ],
)
def test_what_is_begun_is_completed_by_the_next_part(loaded, monkeypatch, data, stops, text):
    monkeypatch.setattr(generation, "make_decoder", lambda *_: Speaking(data))
    settings = replace(SETTINGS["plain"], stop=stops)
    for cut in range(len(data) + 1):
        written = list(data[:cut])
        before = WrittenText(loaded, settings, written)
        steps = generate_steps(loaded, "x", len(data) - cut, settings, 7, written=written)
        pieces = [step.text for (step,) in steps]
        if cut < len(data) or before.over:
            assert before.start + "".join(pieces) == text
        assert not (before.over and pieces) and text.startswith(before.start)


def test_nothing_follows_the_end_of_an_answer(loaded):
    model = answering(loaded)
    steps = generate_steps(model, "a", 9, SETTINGS["plain"], 1, written=[*b"yes\xff"])
    assert list(steps) == []
    assert WrittenText(model, SETTINGS["plain"], [*b"yes\xff"]).start == "yes"


@pytest.mark.parametrize("token", [-1, 256, 10**30])
def test_a_token_of_another_vocabulary_is_refused_in_a_sentence(loaded, token):
    with pytest.raises(UserError, match=f"token id {token}, but the model has the ids 0 to 255"):
        next(generate_steps(loaded, "a", 9, SETTINGS["plain"], 1, written=[65, token]))
