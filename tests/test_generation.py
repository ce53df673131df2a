"""The same call writes the same text, chosen as the filters and the probabilities say."""

from dataclasses import replace

import pytest
import torch

from stages.lm.core.errors import UserError
from stages.lm.inference import generation
from stages.lm.inference.decoder import TorchDecoder
from stages.lm.inference.generation import (
    SamplingSettings,
    generate_steps,
    generate_text,
    sampled_logits,
    sequence_generator,
    text_ids,
)
from stages.lm.inference.loading import LoadedModel
from stages.lm.inference.samplers import draw as draw_one
from stages.lm.inference.samplers import keep_top_p

PLAIN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
WILD = SamplingSettings(temperature=50.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def loaded(request, make_model, tokenizer):
    model = make_model(request.param, vocab_size=tokenizer.vocab_size)
    return LoadedModel(model.config, lambda: model, tokenizer, "float32", {}, 0)


def rows(count, size=200):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=torch.double)


@pytest.fixture
def answering(loaded):
    """The same model as if it had been trained on records."""
    return replace(
        loaded,
        provenance={"data": {"records": {"train": 1}}},
        tokenizer=loaded.tokenizer.for_conversations(),
    )


# Choice -------------------------------------------------------------------------------------------


def draw(logits, settings, count, seed=0):
    generator = sequence_generator(seed, 0)
    left = sampled_logits(logits.double(), settings, None)
    return [draw_one(left, generator) for _ in range(count)]


def test_temperature_zero_takes_the_most_likely():
    settings = SamplingSettings(temperature=0, top_k=3, top_p=0.5)
    for logits in rows(20):
        assert draw(logits, settings, 3) == [logits.argmax()] * 3


def test_a_tiny_temperature_takes_the_most_likely_without_overflow():
    settings = SamplingSettings(temperature=1e-6, top_k=0, top_p=1)
    assert draw(rows(1)[0].float() * 1e4, settings, 5) == [rows(1)[0].argmax()] * 5


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(temperature):
    logits = rows(1, size=6)[0]
    settings = SamplingSettings(temperature=temperature, top_k=0, top_p=1)
    counts = torch.bincount(torch.tensor(draw(logits, settings, 4000)), minlength=6)
    expected = (logits / temperature).softmax(-1)
    deviation = (expected * (1 - expected) / 4000).sqrt()
    assert ((counts / 4000 - expected).abs() < 4 * deviation).all()


def test_what_the_filters_cut_never_comes():
    logits = rows(1, size=50)[0]
    best = set(logits.topk(5).indices.tolist())
    drawn = set(draw(logits, SamplingSettings(temperature=9.0, top_k=5, top_p=1), 500))
    assert drawn == best
    nucleus = keep_top_p(logits, 0.5).isfinite().nonzero().flatten().tolist()
    drawn = set(draw(logits, SamplingSettings(temperature=1, top_k=0, top_p=0.5), 2000))
    assert drawn == set(nucleus)


def test_a_token_without_probability_never_comes():
    logits = torch.tensor([float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")])
    assert set(draw(logits, PLAIN, 300)) == {1, 3}


@pytest.mark.parametrize("point", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_draw_choose_a_possible_token(monkeypatch, point):
    monkeypatch.setattr(torch, "rand", lambda *a, **k: torch.tensor(point, dtype=torch.double))
    logits = torch.tensor([float("-inf"), 0.0, 0.0, float("-inf")])
    assert draw(logits, PLAIN, 1) == [1 if point == 0 else 2]


def test_the_number_format_of_the_logits_does_not_matter():
    logits = rows(1)[0].bfloat16()
    assert draw(logits, PLAIN, 50) == draw(logits.float(), PLAIN, 50)


def test_choosing_does_not_change_the_logits():
    logits = rows(1)[0]
    draw(logits, SamplingSettings(temperature=0.7, top_k=5, top_p=0.5), 3)
    assert torch.equal(logits, rows(1)[0])


# Sequences ----------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_text_and_another_another(loaded):
    first = generate_text(loaded, "The", 30, PLAIN, seed=5)
    assert generate_text(loaded, "The", 30, PLAIN, seed=5) == first
    assert generate_text(loaded, "The", 30, PLAIN, seed=6) != first


def test_the_global_generator_plays_no_part_and_is_left_alone(loaded):
    torch.manual_seed(1)
    first, state = generate_text(loaded, "The", 20, PLAIN, seed=5), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert generate_text(loaded, "The", 20, PLAIN, seed=5) == first


def test_a_sequence_does_not_depend_on_how_many_there_are(loaded):
    three = [generate_text(loaded, "The", 15, PLAIN, 7, index) for index in range(3)]
    assert generate_text(loaded, "The", 15, PLAIN, 7, 2) == three[2]
    assert len(set(three)) == 3


def test_nearby_seeds_and_indices_give_different_draws():
    firsts = [
        torch.rand((), generator=sequence_generator(seed, index)).item()
        for seed in range(20)
        for index in range(20)
    ]
    assert len(set(firsts)) == 400


@pytest.mark.parametrize(
    "settings",
    [
        PLAIN,
        SamplingSettings(temperature=0),
        SamplingSettings(temperature=1.5, top_k=20, min_p=0.05, repetition_penalty=1.3),
        SamplingSettings(temperature=2, stop=("e", "\x05")),
    ],
    ids=["plain", "greedy", "everything", "stops"],
)
@pytest.mark.parametrize("prompt", ["", "The quick brown fox jumps over the lazy dog"])
def test_a_batch_gives_the_texts_that_each_gives_alone(loaded, settings, prompt):
    alone = [generate_text(loaded, prompt, 40, settings, 7, index) for index in (0, 1, 2, 5)]
    rows = list(generate_steps(loaded, prompt, 40, settings, 7, (0, 1, 2, 5)))
    together = ["".join(step.text for step in column if step) for column in zip(*rows, strict=True)]
    assert together == alone
    assert len(rows) == max(sum(step is not None for step in c) for c in zip(*rows, strict=True))


def test_interleaved_runs_give_the_texts_they_give_alone(loaded):
    alone = [generate_text(loaded, "The", 25, PLAIN, 7, index) for index in range(2)]
    runs = [generate_steps(loaded, "The", 25, PLAIN, 7, (index,)) for index in range(2)]
    texts = zip(*[(a.text, b.text) for (a,), (b,) in zip(*runs, strict=True)], strict=True)
    assert ["".join(pieces) for pieces in texts] == alone


def tokens_of(loaded, prompt, count, settings=PLAIN, seed=0):
    return [step.token for (step,) in generate_steps(loaded, prompt, count, settings, seed)]


@pytest.mark.parametrize("length", [1, 8, 16, 17, 30])
def test_decoding_follows_full_forward_passes_and_forgets_the_older_half(loaded, length):
    context = loaded.model.config.context
    prompt = [ord("<"), *range(60, 60 + length - 1)]
    text = loaded.tokenizer.decode(prompt).decode()
    assert loaded.tokenizer.encode(text.encode()) == prompt
    seen = prompt if length <= context else prompt[-(context // 2) :]
    expected = []
    for _ in range(40):
        seen = seen if len(seen) <= context else seen[-(context // 2) :]
        expected.append(int(loaded.model(torch.tensor([seen]))[0, -1].argmax()))
        seen = [*seen, expected[-1]]
    assert tokens_of(loaded, text, 40, SamplingSettings(temperature=0)) == expected


@pytest.mark.parametrize("length", [15, 16, 17, 100])
def test_a_prompt_of_any_length_is_continued(loaded, length):
    assert len(tokens_of(loaded, "\x05" * length, 60)) == 60


def test_only_the_end_of_a_long_prompt_is_seen(loaded):
    context = loaded.model.config.context
    prompt = bytes(range(64, 100)).decode()
    assert len(loaded.tokenizer.encode(prompt.encode())) == len(prompt)
    assert tokens_of(loaded, prompt, 5) == tokens_of(loaded, prompt[-(context // 2) :], 5)


def test_the_cache_gives_the_logits_of_the_whole(loaded):
    decoder = TorchDecoder(loaded, batch=1)
    decoder.feed([[1, 2, 3]])
    stepped = decoder.feed([[4]])
    torch.testing.assert_close(
        stepped, TorchDecoder(loaded, batch=1).feed([[1, 2, 3, 4]]), atol=1e-4, rtol=0
    )


def test_no_tokens_are_no_text(loaded):
    assert generate_text(loaded, "The", 0, PLAIN, 0) == ""


def test_an_empty_prompt_starts_as_a_new_line(loaded):
    assert generate_text(loaded, "", 20, PLAIN, 3) == generate_text(loaded, "\n", 20, PLAIN, 3)


def test_a_prompt_that_is_no_unicode_is_continued(loaded):
    assert isinstance(generate_text(loaded, "\ud800", 5, PLAIN, 3), str)


def test_ids_of_the_padding_never_come(loaded):
    config = loaded.model.config
    assert config.padded_vocab > config.vocab_size
    drawn = tokens_of(loaded, "a", 600, WILD)
    assert max(drawn) < config.vocab_size and len(set(drawn)) > 200


# Text from tokens ---------------------------------------------------------------------------------


def spoken(monkeypatch, loaded, ids, stop=()):
    """The pieces of a model that says exactly `ids`."""
    said = iter(ids)
    monkeypatch.setattr("stages.lm.inference.generation.draw", lambda *_: next(said))
    rows = generate_steps(loaded, "x", len(ids), SamplingSettings(stop=stop), 0)
    return [step.text for (step,) in rows if step.text]


def test_a_character_in_several_tokens_comes_whole(monkeypatch, loaded):
    text = "a🙂bü我 end 🙃"
    pieces = spoken(monkeypatch, loaded, list(text.encode()))
    assert pieces == list(text)


def test_pieces_joined_are_the_text_of_the_tokens(monkeypatch, loaded, text):
    text = text[:450]  # each of its scripts twice
    ids = loaded.tokenizer.encode(text.encode())
    assert "".join(spoken(monkeypatch, loaded, ids)) == text


def test_random_tokens_make_valid_text(loaded):
    text = generate_text(loaded, "The", 400, WILD, 9)
    tokens = tokens_of(loaded, "The", 400, WILD, seed=9)
    assert text == loaded.tokenizer.decode(tokens).decode("utf-8", "replace")
    assert "\ufffd" in text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xe2\x82", "\ufffd"),
        (b"a\xff b", "a\ufffd b"),
        (b"\xf0\x9f\x99a", "\ufffda"),
        (b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
)
def test_broken_characters_become_replacement_characters(monkeypatch, loaded, data, text):
    assert "".join(spoken(monkeypatch, loaded, list(data))) == text


# Stop strings -------------------------------------------------------------------------------------


def test_a_text_ends_before_a_stop_string_in_several_tokens(monkeypatch, loaded):
    ids = [*b"one\n\ntwo"]
    assert spoken(monkeypatch, loaded, ids, ("\n\n",)) == ["o", "n", "e"]
    assert spoken(monkeypatch, loaded, ids, ("\n\nx", "wo")) == ["o", "n", "e", "\n\nt"]


def test_what_could_have_become_a_stop_string_comes_at_the_end(monkeypatch, loaded):
    assert spoken(monkeypatch, loaded, [*b"ab<en"], ("<end>",)) == ["a", "b", "<en"]


def test_a_stop_string_within_a_token_ends_the_text(monkeypatch, loaded):
    (token,) = (i for i, data in enumerate(loaded.tokenizer.tokens) if data == b"the")
    assert spoken(monkeypatch, loaded, [*b"to ", token, *b" end"], ("h",)) == ["t", "o", " ", "t"]


def test_stop_strings_of_characters_in_several_tokens(monkeypatch, loaded):
    ids = [*"a🙃b🙂c".encode()]
    assert spoken(monkeypatch, loaded, ids, ("🙂",)) == ["a", "🙃", "b"]


def test_nothing_is_chosen_after_the_stop_string(monkeypatch, loaded):
    said = iter(b"ab.")  # a fourth would raise
    monkeypatch.setattr("stages.lm.inference.generation.draw", lambda *_: next(said))
    rows = list(generate_steps(loaded, "x", 50, SamplingSettings(stop=(".",)), 0))
    assert [step.data for (step,) in rows] == [b"a", b"b", b"."]


# Log-probabilities -----------------------------------------------------------------------------


def test_odds_are_the_models_and_the_samplers(loaded):
    settings = SamplingSettings(temperature=1.7, top_k=4, top_p=1, repetition_penalty=1.5)
    prompt = loaded.tokenizer.encode(b"The")
    (row,) = generate_steps(loaded, "The", 1, settings, 3, top_logprobs=6)
    (step,) = row
    logits = loaded.model(torch.tensor([prompt]))[0, -1].double()
    before = logits.log_softmax(-1)
    assert step.before.chosen == pytest.approx(before[step.token].item())
    assert [i for i, _ in step.before.top] == before.topk(6).indices.tolist()
    assert [log for _, log in step.before.top] == pytest.approx(before.topk(6).values.tolist())
    seen = torch.zeros(len(logits), dtype=torch.bool)
    seen[prompt] = True
    after = sampled_logits(logits, settings, seen).log_softmax(-1)
    assert step.after.chosen == pytest.approx(after[step.token].item())
    assert [i for i, _ in step.after.top] == after.topk(4).indices.tolist()
    assert sum(torch.tensor([log for _, log in step.after.top]).exp()) == pytest.approx(1)


def test_odds_change_no_text_and_are_only_there_if_asked_for(loaded):
    plain = [step for (step,) in generate_steps(loaded, "The", 20, PLAIN, 3)]
    told = [step for (step,) in generate_steps(loaded, "The", 20, PLAIN, 3, top_logprobs=0)]
    assert [step.token for step in plain] == [step.token for step in told]
    assert all(step.before is step.after is None for step in plain)
    assert all(step.before.top == [] and step.before.chosen < 0 for step in told)


def test_the_penalty_sees_the_prompt_and_every_token_so_far(loaded):
    settings = SamplingSettings(temperature=0, repetition_penalty=1e6)
    ids = loaded.tokenizer.encode(b"The quick")
    tokens = tokens_of(loaded, "The quick", 60, settings)
    assert len({*ids, *tokens}) == len({*ids}) + 60


# Answers ------------------------------------------------------------------------------------------


class Scripted:
    """A decoder whose likeliest tokens are known, and which remembers what it is fed."""

    context, length, splits_freely = 100, 0, True

    def __init__(self, tokens):
        self.fed, self.left = [], list(tokens)

    def feed(self, rows):
        self.fed += rows[0]
        logits = torch.full((1, 300), -100.0)
        logits[0, self.left.pop(0)] = 100.0
        return logits


@pytest.fixture
def scripted(monkeypatch, tokenizer):
    def script(data):
        decoder = Scripted(tokenizer.encode(data))
        monkeypatch.setattr(generation, "make_decoder", lambda *_: decoder)
        return decoder

    return script


def test_an_answer_follows_its_prompt_and_ends_before_its_last_byte(answering, scripted, tokenizer):
    decoder = scripted("ü!".encode() + b"\xffmore")
    told = [step for (step,) in generate_steps(answering, "the dog", 9, PLAIN, 1)]
    assert "".join(step.text for step in told) == "ü!" and told[-1].data == b""
    assert tokenizer.decode(decoder.fed[: -len(told) + 1]) == b"the dog\xfe"


def test_what_was_written_follows_the_prompt_of_an_answer(answering, scripted, tokenizer):
    decoder = scripted(b"\xff")
    (row,) = generate_steps(answering, "a", 9, PLAIN, 1, written=tokenizer.encode(b"b"))
    assert row[0].text == ""
    assert tokenizer.decode(decoder.fed) == b"a\xfeb"


def test_a_stop_string_that_was_only_begun_belongs_to_the_answer(answering, scripted):
    scripted(b"one E\xff")
    settings = replace(PLAIN, stop=("END",))
    rows = generate_steps(answering, "a", 99, settings, 1)
    assert "".join(step.text for (step,) in rows if step) == "one E"


@pytest.mark.parametrize("prompt", ["", "a name"])
def test_a_text_begins_as_documents_did_and_ends_by_itself(loaded, scripted, tokenizer, prompt):
    own, data = tokenizer.for_documents(), {"documents": {"train": 1}}
    documents = replace(loaded, tokenizer=own, provenance={"data": data})
    decoder = scripted(b"ab\xffmore")
    told = [step for (step,) in generate_steps(documents, prompt, 9, PLAIN, 1)]
    assert "".join(step.text for step in told) == "ab" and own.shown(told[-1].token) == b"<|end|>"
    assert tokenizer.decode(decoder.fed[: -len(told) + 1]) == b"\xff" + prompt.encode()


def test_what_stands_before_every_text_of_a_base_stands_before_prompts(loaded, tokenizer):
    own = tokenizer.for_documents()
    own.opening = (5,)
    assert text_ids(replace(loaded, tokenizer=own), "a") == [5, *own.encode(b"a")]
    assert text_ids(replace(loaded, tokenizer=own), "") == [5]


@pytest.mark.parametrize("data", [None, [], {"records": None, "documents": None}, {}])
def test_only_records_make_a_model_that_answers(loaded, data):
    other = replace(loaded, provenance={"data": data})
    assert not other.answers and not other.opening


def test_a_vocabulary_that_makes_no_tokens_is_refused(loaded, monkeypatch):
    monkeypatch.setattr(type(loaded.tokenizer), "encode", lambda self, *_: [])
    with pytest.raises(UserError, match="makes no tokens"):
        next(generate_steps(loaded, "the", 1, SamplingSettings(), 1))
