"""The same call writes the same text, chosen as the filters and the probabilities say."""

import itertools

import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from stages.lm.decoder import TorchDecoder, make_decoder
from stages.lm.loading import LoadedModel
from stages.lm.sampling import (
    SamplingSettings,
    choose,
    generate_text,
    generate_tokens,
    keep_top_k,
    keep_top_p,
    sequence_generator,
    stream_text,
)

PLAIN = SamplingSettings(temperature=1.0, top_k=0, top_p=1.0)
WILD = SamplingSettings(temperature=50.0, top_k=0, top_p=1.0)


@pytest.fixture(scope="module", params=["qwen3", "gpt2"])
def loaded(request, make_model, tokenizer):
    model = make_model(request.param, vocab_size=tokenizer.vocab_size)
    return LoadedModel(model.config, lambda: model, tokenizer, "float32", {}, 0)


def rows(count, size=200):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(2), dtype=torch.double)


# Filters ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 17, 199, 200])
def test_top_k_keeps_what_transformers_keeps(k):
    for logits in rows(20):
        expected = TopKLogitsWarper(top_k=k)(None, logits.unsqueeze(0))[0]
        assert torch.equal(keep_top_k(logits, k), expected)


@pytest.mark.parametrize("p", [0.01, 0.3, 0.5, 0.9, 0.95, 0.999])
def test_top_p_keeps_what_transformers_keeps(p):
    for scale, logits in itertools.product((0.2, 1, 5), rows(20)):
        expected = TopPLogitsWarper(top_p=p)(None, logits.unsqueeze(0) * scale)[0]
        assert torch.equal(keep_top_p(logits * scale, p), expected)


@pytest.mark.parametrize("k", [0, -1, 200, 1000])
def test_top_k_is_off_at_zero_and_beyond_the_vocabulary(k):
    assert torch.equal(keep_top_k(rows(1)[0], k), rows(1)[0])


def test_top_p_is_off_at_one():
    assert torch.equal(keep_top_p(rows(1)[0], 1.0), rows(1)[0])


def test_top_p_keeps_the_fewest_that_reach_the_sum():
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3], dtype=torch.double).log()
    for p, kept in [(0.4, [1]), (0.6, [1, 3]), (0.81, [0, 1, 3]), (0.96, [0, 1, 2, 3])]:
        assert keep_top_p(logits, p).isfinite().nonzero().flatten().tolist() == kept


def test_top_p_stops_where_the_sum_is_reached_exactly():
    assert keep_top_p(torch.zeros(4, dtype=torch.double), 0.5).isfinite().sum() == 2


def test_top_p_keeps_at_least_one():
    assert keep_top_p(rows(1)[0], 0.0).isfinite().sum() == 1


def test_ties_with_the_last_of_top_k_stay():
    logits = torch.tensor([1.0, 2.0, 2.0, 0.0])
    assert keep_top_k(logits, 1).isfinite().tolist() == [False, True, True, False]


# Choice -------------------------------------------------------------------------------------------


def draw(logits, settings, count, seed=0):
    generator = sequence_generator(seed, 0)
    return [choose(logits, settings, generator) for _ in range(count)]


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
    assert choose(logits, PLAIN, torch.Generator()) == (1 if point == 0 else 2)


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


def test_interleaved_streams_give_the_texts_they_give_alone(loaded):
    alone = [generate_text(loaded, "The", 25, PLAIN, 7, index) for index in range(2)]
    streams = [stream_text(loaded, "The", 25, PLAIN, 7, index) for index in range(2)]
    pieces = list(itertools.zip_longest(*streams, fillvalue=""))
    assert ["".join(stream) for stream in zip(*pieces, strict=True)] == alone


def tokens_of(loaded, prompt, count, settings=PLAIN, seed=0):
    generator = sequence_generator(seed, 0)
    return list(generate_tokens(make_decoder(loaded), prompt, count, settings, generator))


@pytest.mark.parametrize("length", [1, 8, 16, 17, 30])
def test_decoding_follows_full_forward_passes_and_forgets_the_older_half(loaded, length):
    context = loaded.model.config.context
    prompt = list(range(60, 60 + length))
    seen = prompt if length <= context else prompt[-(context // 2) :]
    expected = []
    for _ in range(40):
        seen = seen if len(seen) <= context else seen[-(context // 2) :]
        expected.append(int(loaded.model(torch.tensor([seen]))[0, -1].argmax()))
        seen = [*seen, expected[-1]]
    assert tokens_of(loaded, prompt, 40, SamplingSettings(temperature=0)) == expected


@pytest.mark.parametrize("length", [15, 16, 17, 100])
def test_a_prompt_of_any_length_is_continued(loaded, length):
    assert len(tokens_of(loaded, [65] * length, 60)) == 60


def test_only_the_end_of_a_long_prompt_is_seen(loaded):
    context = loaded.model.config.context
    prompt = list(range(40, 140))
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
    drawn = tokens_of(loaded, [1], 600, WILD)
    assert max(drawn) < config.vocab_size and len(set(drawn)) > 200


# Text from tokens ---------------------------------------------------------------------------------


def spoken(monkeypatch, loaded, ids):
    """The pieces of a model that says exactly `ids`."""
    monkeypatch.setattr("stages.lm.sampling.generate_tokens", lambda *_: iter(ids))
    return list(stream_text(loaded, "x", len(ids), PLAIN, 0))


def test_a_character_in_several_tokens_comes_whole(monkeypatch, loaded):
    text = "a🙂bü我 end 🙃"
    pieces = spoken(monkeypatch, loaded, list(text.encode()))
    assert pieces == list(text)


def test_pieces_joined_are_the_text_of_the_tokens(monkeypatch, loaded, text):
    ids = loaded.tokenizer.encode(text.encode())
    assert "".join(spoken(monkeypatch, loaded, ids)) == text


def test_random_tokens_make_valid_text(loaded):
    pieces = list(stream_text(loaded, "The", 400, WILD, 9))
    assert "" not in pieces
    assert generate_text(loaded, "The", 400, WILD, 9) == "".join(pieces)
    tokens = tokens_of(loaded, loaded.tokenizer.encode(b"The"), 400, WILD, seed=9)
    assert "".join(pieces) == loaded.tokenizer.decode(tokens).decode("utf-8", "replace")
    assert "\ufffd" in "".join(pieces)


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
