"""A neural cache mixes in what followed similar states, and keeps every promise of writing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from stages.lm.evaluation import adaptive
from stages.lm.evaluation.adaptive import CANDIDATES, Votes, adaptive_losses, count_votes
from stages.lm.inference.decoder import ContextWindow, make_decoder
from stages.lm.inference.generation import SamplingSettings, generate_steps, generate_text
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.inference.neural_cache import (
    CODE_LENGTH,
    CacheMix,
    NeuralCache,
    code_cosines,
    state_codes,
)
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.scoring import scored_batches
from stages.lm.quantization.quantized_model import quantize_checkpoint

LONG = "The quick brown fox jumps over the lazy dog; the dog, being lazy, didn't mind."


@pytest.fixture(scope="module", params=["engine", "packed", "torch"])
def loaded(request, make_model, checkpoint, tmp_path_factory):
    """A quantized model with the decoder of each kind; a context of 24 tokens is soon full."""
    sizes = {"vocab_size": checkpoint.config.vocab_size, "context": 24, "width": 64}
    model = make_model(**sizes, head_size=16, ff_width=64)
    path = tmp_path_factory.mktemp("cache") / "int8.pt"
    stored = Checkpoint(model.config, model.state_dict(), checkpoint.tokenizer, {})
    quantize_checkpoint(stored, "int8").save(path)
    loaded = load_model(path)
    if request.param == "torch":
        return replace(loaded, weights=None)
    if request.param == "packed":
        vars(loaded)["engine"] = None
    elif loaded.engine is None:
        pytest.skip("there is no C compiler")
    return loaded


def steps(loaded, prompt, count, cache):
    """The tokens of a text and the log-probabilities that they were drawn with."""
    settings = SamplingSettings(temperature=1.2, cache=cache)
    rows = generate_steps(loaded, prompt, count, settings, 3, top_logprobs=2)
    return [(step.token, step.before.top) for (step,) in rows]


# Writing ------------------------------------------------------------------------------------------


def test_threads_change_no_bit(loaded):
    expected = steps(loaded, LONG, 30, 50)
    torch.set_num_threads(2)
    try:
        assert steps(loaded, LONG, 30, 50) == expected
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("cache", [7, 40])
def test_probabilities_are_the_models_and_the_votes_of_similar_states(loaded, cache):
    """Written out: one forward pass a token, and sums over the tokens before."""
    model, half = loaded.model, loaded.config.context // 2
    mix = CacheMix(temperature=0.1, decay=0.5, bias=-0.5, nearest=1.0, entropy=0.1)
    prompt = loaded.tokenizer.encode(b"The lazy dog")
    written = [token for token, _ in steps(loaded, "The lazy dog", 45, 0)]
    window, remembered, state = [], [], None
    for token in [*prompt, *written]:
        remembered += [] if state is None else [(state, token)]
        window = [*window, token]
        window = window if len(window) <= loaded.config.context else window[-half:]
        state = model.states(torch.tensor([window]))[0, -1].double()
    logits = model(torch.tensor([window]))[0, -1].double()
    kept = remembered[-cache:]
    cosines = torch.stack([torch.cosine_similarity(key, state, dim=0) for key, _ in kept])
    votes = torch.zeros(len(logits), dtype=torch.float64)
    for age, (cosine, (_, token)) in enumerate(zip(cosines.flip(0), kept[::-1], strict=True), 1):
        votes[token] += (cosine / mix.temperature).exp() / age**mix.decay
    own = logits.softmax(dim=0)
    entropy = -(own * own.log()).sum()
    share = (mix.bias + mix.nearest * cosines.max() + mix.entropy * entropy).sigmoid()
    expected = (1 - share) * own + share * votes / votes.sum()
    assert (expected - own).abs().max() > 0.05
    neural = NeuralCache(cache, 1, loaded.config.width, mix)
    reading = ContextWindow(make_decoder(loaded, keep_states=True), prompt, neural)
    for token in written:
        reading.append([token])
    found = reading.logits()[0].softmax(dim=0)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("size", [3, 30, 1000])
def test_all_of_a_long_prompt_that_fits_is_in_the_cache(loaded, size):
    prompt = list(range(97)) * 2
    neural = NeuralCache(size, 1, loaded.config.width)
    reading = ContextWindow(make_decoder(loaded, keep_states=True), prompt, neural)
    reading.logits()
    kept = min(size, len(prompt) - 1)
    slots = torch.arange(neural.count - kept, neural.count) % size
    assert neural.tokens[0, slots].tolist() == prompt[-kept:]


def test_switched_off_nothing_of_it_runs(loaded, monkeypatch):
    text = generate_text(loaded, LONG, 40, SamplingSettings(), 3)
    monkeypatch.setattr("stages.lm.inference.generation.NeuralCache", None)
    monkeypatch.setattr("stages.lm.inference.neural_cache.state_codes", None)
    assert generate_text(loaded, LONG, 40, SamplingSettings(cache=0), 3) == text
    with pytest.raises(TypeError):
        generate_text(loaded, LONG, 40, SamplingSettings(cache=1), 3)


@pytest.mark.parametrize("width", [64, 4096])
def test_cosines_are_exact_in_any_order(width):
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(50, width, generator=generator)
    states[:, 0] *= 100  # as in large models: one dimension above all others
    codes = state_codes(states)
    whole = codes.long() @ codes.long().T
    assert torch.equal(codes @ codes.T, whole.float()) and whole.max() < 2**24
    order = torch.randperm(width, generator=generator)
    assert torch.equal(code_cosines(codes[:, order], codes[:, order]), code_cosines(codes, codes))
    exact = torch.cosine_similarity(states[:, None].double(), states.double(), dim=-1)
    assert (whole / CODE_LENGTH**2 - exact).abs().max() < 1e-3


def test_an_empty_cache_leaves_the_logits_as_they_are():
    cache = NeuralCache(4, batch=1, width=8)
    logits = torch.randn(1, 20)
    assert torch.equal(cache.mixed(logits), logits)
    cache.read([[3]], torch.randn(1, 1, 8), new=1)  # nothing predicted it
    assert torch.equal(cache.mixed(logits), logits)


# Scoring ------------------------------------------------------------------------------------------


@pytest.fixture
def scored(make_model, data):
    """A model, and parts of the fixture's text as `evaluate` scores them."""
    model = make_model()
    loaded = LoadedModel(model.config, lambda: model, None, "float32", {}, 0)
    parts = {
        split: SimpleNamespace(tokens=getattr(data, split), bytes=3 * len(getattr(data, split)))
        for split in ("val", "test")
    }
    return {"float": loaded}, parts


def joined(batches, size, mixes):
    return Votes(
        *(torch.cat(part, dim=-1) for part in zip(*count_votes(batches, size, mixes), strict=True))
    )


@pytest.mark.parametrize("block", [1, 7, 256])
@pytest.mark.parametrize("size", [1, 40, 1000])
def test_a_texts_loss_is_that_of_reading_it_token_by_token(
    scored, data, machine, monkeypatch, size, block
):
    monkeypatch.setattr(adaptive, "BLOCK", block)
    mix = CacheMix(temperature=0.1, decay=0.5, bias=0.1, nearest=0.2, entropy=-0.3)
    models, _ = scored
    batches = list(scored_batches(models["float"].model, data.val, data.train, machine, 4))
    found = joined(batches, size, [CacheMix(), mix]).logprobs(mix, 1)
    cache = NeuralCache(size, 1, 32, mix)
    expected, last = [], 0
    for state, logits, token in zip(*map(torch.cat, zip(*batches, strict=True)), strict=True):
        # `read` takes the state that follows a token.
        cache.read([[last]], state[None, None], new=1)
        expected.append(cache.mixed(logits[None])[0].double().log_softmax(dim=0)[token].item())
        last = int(token)
    # Nothing is in the cache before the first token.
    assert found.tolist()[1:] == pytest.approx(expected[1:], rel=1e-5)


def test_the_mix_is_fitted_on_validation_text_only(scored, data, machine):
    models, parts = scored
    results = adaptive_losses(models, data, parts, machine, 4, 50)
    other = SimpleNamespace(tokens=parts["test"].tokens[::-1].copy(), bytes=parts["test"].bytes)
    changed = adaptive_losses(models, data, parts | {"test": other}, machine, 4, 50)
    assert changed["cache"] == results["cache"] and results["cache"]["tokens"] == 50
    assert changed["float"]["val"] == results["float"]["val"]
    assert changed["float"]["test"] != results["float"]["test"]


def test_the_fitted_mix_is_better_than_every_candidate(scored, data, machine):
    models, _ = scored
    batches = list(scored_batches(models["float"].model, data.val, data.train, machine, 4))
    votes = joined(batches, 50, CANDIDATES)
    fitted = adaptive.fitted_mix(votes)
    losses = [-votes.logprobs(mix, index).mean() for index, mix in enumerate(CANDIDATES)]
    assert -joined(batches, 50, [fitted]).logprobs(fitted).mean() < min(losses)


def test_a_repetitive_text_gains(scored, data, machine):
    models, parts = scored
    batches = list(scored_batches(models["float"].model, data.val, data.train, machine, 4))
    static = -joined(batches, 1, CANDIDATES).model.sum() / parts["val"].bytes
    adapted = adaptive_losses(models, data, parts, machine, 4, 200)["float"]["val"]
    assert adapted["nats_per_byte"] < 0.7 * static
