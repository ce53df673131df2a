"""The C engine gives the model's logits, the same bits however asked, or leaves it to torch."""

import ctypes
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages.lm.inference import engine, engine_structs, token_step
from stages.lm.inference.decoder import PackedDecoder, TorchDecoder, make_decoder
from stages.lm.inference.engine import Engine, EngineDecoder
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.inference.native import NATIVE, library
from stages.lm.inference.token_step import TokenStep, make_token_step
from stages.lm.model.attention import KVCache
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.quantization.schemes import QuantizedWeight, dequantize

CONTEXT = 300  # more than the engine's blocks of tokens and of keys
SHAPES = {
    "qwen3": {"arch": "qwen3"},
    "grouped queries, tied": {"arch": "qwen3", "kv_heads": 2, "tie_embeddings": True},
    "gpt2": {"arch": "gpt2", "tie_embeddings": True},
}
FAMILIES = {
    "llama": {"arch": "llama", "kv_heads": 2, "norm_eps": 1e-5, "sliding_window": 40},
    "llama 3": {
        **{"arch": "llama", "rope_scaling": "llama3", "rope_factor": 8.0},
        **{"rope_original_context": 64, "tie_embeddings": True},
    },
    "qwen2": {
        **{"arch": "qwen2", "kv_heads": 1, "rope_scaling": "yarn", "rope_factor": 4.0},
        **{"rope_original_context": 64, "rope_high": 32.0, "rope_attention": 1.1},
    },
    "gemma3": {"arch": "gemma3", "kv_heads": 1, "layers": 6, "sliding_window": 100},
    "smollm3": {"arch": "smollm3", "layers": 4},
    "olmo2": {"arch": "olmo2", "kv_heads": 2},
}
WEIGHTS = {"int8": (127, False), "int8 in groups": (127, True), "int4": (7, False)}
WEIGHTS["int4 in groups"] = (7, True)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
    library.cache_clear()


def quantized(weight, top, in_groups):
    rows = weight.unflatten(1, (-1, 64)) if in_groups else weight.unsqueeze(1)
    scales = (rows.abs().amax(dim=2, keepdim=True) / top).half()
    codes = (rows / scales.float()).round().clamp(-top, top).to(torch.int8)
    return QuantizedWeight(codes.flatten(1), scales.squeeze(2)), codes * scales.float()


@pytest.fixture(scope="module")
def make_loaded(make_config, tokenizer):
    """A function from a shape and a kind of weights to a model of random quantized weights."""

    def make(shape="qwen3", kind="int8", **fields):
        sizes = {"width": 128, "head_size": 32, "ff_width": 192, "context": CONTEXT}
        fields = sizes | {"vocab_size": tokenizer.vocab_size} | (SHAPES | FAMILIES)[shape] | fields
        model = Transformer(make_config(**fields)).eval().requires_grad_(False)
        generator = torch.Generator().manual_seed(1)
        weights = {}
        for name, parameter in model.named_parameters():
            std = parameter.size(-1) ** -0.5 / 2 if parameter.ndim == 2 else 0.1
            mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(mean, std, generator=generator)
            if parameter.ndim == 2:
                weights[name], exact = quantized(parameter, *WEIGHTS[kind])
                parameter.copy_(exact.flatten(1))
            else:
                weights[name] = parameter.half()
                parameter.copy_(parameter.half())
        return LoadedModel(model.config, lambda: model, tokenizer, kind, {}, 0, weights)

    return make


def tokens_of(loaded, count, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(loaded.config.vocab_size, (count,), generator=generator).tolist()


def runs_here(flag):
    """Whether this processor has the instructions of a compiler's `-march`."""
    try:
        known = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    wanted = {"-march=haswell": ("avx2", "fma", "f16c"), "-march=x86-64": ("sse2",)}[flag]
    return all(f" {name} " in known for name in wanted)


@pytest.fixture(scope="module", params=[NATIVE, ("-march=haswell",), ("-march=x86-64",)])
def compiled(request):
    if request.param != NATIVE and not runs_here(*request.param):
        pytest.skip("this processor cannot run it")
    return library(request.param)


# Logits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_the_dequantized_weights(make_loaded, compiled, shape, kind):
    loaded = make_loaded(shape, kind)
    tokens = tokens_of(loaded, CONTEXT)
    expected = loaded.model(torch.tensor([tokens]))[0].double().log_softmax(dim=1)
    decoder = EngineDecoder(Engine(compiled, loaded.config, loaded.weights), 1)
    found = torch.cat([decoder.feed([[token]]) for token in tokens]).double().log_softmax(dim=1)
    assert not hasattr(decoder, "states")  # which take time
    nats = (expected.exp() * (expected - found)).sum(dim=1)
    assert nats.mean() < 1e-4
    chosen = expected.gather(1, found.argmax(dim=1, keepdim=True))[:, 0]
    assert (expected.amax(dim=1) - chosen).max() < 0.1  # another token only where they are close


@pytest.mark.parametrize("shape", FAMILIES)
def test_every_family_is_decoded_as_its_graph(make_loaded, shape):
    loaded = make_loaded(shape, "int8 in groups")
    tokens = tokens_of(loaded, CONTEXT)
    expected = loaded.model(torch.tensor([tokens]))[0].log_softmax(dim=1)
    decoder = EngineDecoder(Engine(library(), loaded.config, loaded.weights), 1)
    step = TokenStep(loaded.config, loaded.weights)
    cache = KVCache(loaded.config, 1, torch.empty(0))
    decoder.feed([tokens[:-3]])
    loaded.model(torch.tensor([tokens[:-3]]), cache)
    for index in (-3, -2, -1):
        for logits in (decoder.feed([[tokens[index]]]), step(tokens[index], cache)[1]):
            given = logits.log_softmax(dim=1)[0], expected[index]
            assert F.kl_div(*given, reduction="sum", log_target=True).abs() < 3e-4


@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_small_vectors_are_normed_with_the_models_epsilon(make_loaded, compiled, shape):
    loaded = make_loaded(shape)
    weights = dict(loaded.weights)
    for name in {"token_embedding.weight", "position_embedding.weight"} & set(weights):
        small = QuantizedWeight(weights[name].codes, weights[name].scales * 0.03)
        weights[name] = small
        loaded.model.get_parameter(name).copy_(dequantize(small))
    tokens = tokens_of(loaded, 8)
    expected = loaded.model(torch.tensor([tokens]))[0, -1].double()
    found = EngineDecoder(Engine(compiled, loaded.config, weights), 1).feed([tokens])[0].double()
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize("lane", [0, 5, 127])
@pytest.mark.parametrize("shape", ["qwen3", "gpt2"])
def test_a_number_that_overflows_reaches_the_logits(make_loaded, compiled, shape, lane):
    loaded = make_loaded(shape)
    weights = dict(loaded.weights)
    wide = weights["blocks.1.attention.qkv.weight"]
    scales = wide.scales.clone()
    scales[256 + lane] = 60_000  # a value larger than any half
    weights["blocks.1.attention.qkv.weight"] = QuantizedWeight(wide.codes, scales)
    decoder = EngineDecoder(Engine(compiled, loaded.config, weights), 1)
    logits = decoder.feed([tokens_of(loaded, 40)])
    assert logits.isnan().all() or (
        decoder.engine.half == torch.float32 and logits.isfinite().all()
    )


def test_numbers_near_zero_count_as_zero(make_loaded, compiled):
    loaded = make_loaded("gpt2")
    weights = dict(loaded.weights)
    for name in ("weight", "bias"):
        norm = f"blocks.0.attention_norm.{name}"
        weights[norm] = torch.zeros_like(weights[norm])
    token = [tokens_of(loaded, 3)]
    expected = EngineDecoder(Engine(compiled, loaded.config, weights), 1).feed(token)
    found = Engine(compiled, loaded.config, weights)
    for tensor in found.owned:
        if tensor.dtype == torch.float32 and tensor.ndim == 1 and not tensor.any():
            tensor.fill_(1e-40)
    assert torch.equal(EngineDecoder(found, 1).feed(token), expected)


@pytest.mark.parametrize("x", [-2, -1, 0.5, 1, 2, 3])
def test_activations_that_eight_bits_hold_exactly_give_exact_logits(make_loaded, compiled, x):
    """Half of the residual holds +-1 from the embedding, the other half +-gelu(x)."""
    loaded = make_loaded("gpt2", layers=1, tie_embeddings=False, ff_width=64)
    weights = {}
    for name, weight in loaded.model.named_parameters():
        ones = "norm" in name and name.endswith("weight")
        weights[name] = (torch.ones if ones else torch.zeros)(weight.shape).half()
        if weight.ndim == 2:
            codes, scales = torch.zeros(weight.shape, dtype=torch.int8), torch.ones(len(weight), 1)
            weights[name] = QuantizedWeight(codes, scales.half())
    signs = torch.tensor([1, -1], dtype=torch.int8).repeat(32)
    weights["token_embedding.weight"].codes[:, :64] = signs
    weights["blocks.0.feed_forward.up.bias"][:] = x
    weights["blocks.0.feed_forward.down.weight"].codes[64:, 0] = signs
    weights["head.weight"].codes[0, :64] = signs
    weights["head.weight"].codes[1, 64:] = signs
    one, gelu = EngineDecoder(Engine(compiled, loaded.config, weights), 1).feed([[5]])[0, :2]
    expected = torch.nn.functional.gelu(torch.tensor(float(x)), approximate="tanh")
    norm = ((1 + expected**2) / 2 + 1e-5).sqrt()
    torch.testing.assert_close(one, 64 / norm, atol=0, rtol=1e-4)
    torch.testing.assert_close(gelu, 64 * expected / norm, atol=0, rtol=1e-4)


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_threads_and_the_split_of_a_prompt_change_no_bit(make_loaded, compiled, shape, kind):
    loaded = make_loaded(shape, kind)
    tokens = tokens_of(loaded, CONTEXT - 1)
    shared = Engine(compiled, loaded.config, loaded.weights)
    alone = EngineDecoder(shared, 1, keep_states=True)
    expected = alone.feed([tokens])
    for batch, threads, cuts in ((1, 3, (1, 2, 100)), (3, 1, (255, 257)), (7, 2, (16, 144, 290))):
        torch.set_num_threads(threads)
        try:
            decoder = EngineDecoder(shared, batch, keep_states=True)
            for first, end in zip((0, *cuts), (*cuts, len(tokens)), strict=True):
                found = decoder.feed([tokens[first:end]])
                states = alone.states[:, first:end]
                assert torch.equal(decoder.states, states.expand_as(decoder.states))
        finally:
            torch.set_num_threads(1)
        assert decoder.length == len(tokens) and found.shape == (batch, expected.size(1))
        assert all(torch.equal(row, expected[0]) for row in found)


def test_final_states_are_those_of_the_dequantized_weights(make_loaded, compiled):
    for shape in SHAPES:
        loaded = make_loaded(shape)
        tokens = [tokens_of(loaded, 100)]
        decoder = EngineDecoder(Engine(compiled, loaded.config, loaded.weights), 1, True)
        decoder.feed(tokens)
        states = loaded.model.states(torch.tensor(tokens))
        assert decoder.states.shape == states.shape
        assert torch.cosine_similarity(decoder.states, states, dim=2).min() > 0.999


def test_structs_that_differ_from_the_librarys_are_refused(make_loaded, compiled, monkeypatch):
    class Norm(ctypes.Structure):
        _fields_ = (("bias", ctypes.c_void_p), ("weight", ctypes.c_void_p))  # in another order

    assert engine.layout_in(compiled) == engine.layout_here()
    loaded = make_loaded()
    monkeypatch.setattr(engine_structs, "STRUCTS", (*engine_structs.STRUCTS, Norm))
    with pytest.raises(AssertionError, match=r"model\.h"):
        Engine(compiled, loaded.config, loaded.weights)


def test_sequences_of_a_batch_do_not_meet(make_loaded):
    loaded = make_loaded("grouped queries, tied")
    rows = [tokens_of(loaded, 200, seed) for seed in range(5)]
    batch, alone = make_decoder(loaded, batch=5), make_decoder(loaded)
    assert isinstance(batch, EngineDecoder)
    batch.feed([row[:150] for row in rows])
    together = batch.feed([row[150:] for row in rows])
    for row, found in zip(rows, together, strict=True):
        alone.reset()
        assert torch.equal(alone.feed([row])[0], found)


def test_what_is_forgotten_leaves_no_trace(make_loaded):
    loaded = make_loaded()
    decoder = make_decoder(loaded)
    expected = decoder.feed([tokens_of(loaded, 40)])
    decoder.reset()
    assert decoder.length == 0
    decoder.feed([tokens_of(loaded, 200, seed=3)])
    decoder.reset()
    assert torch.equal(decoder.feed([tokens_of(loaded, 40)]), expected)


@pytest.mark.parametrize("size", [16, 48, 64, 80])
def test_any_head_of_whole_vectors_is_served(make_loaded, size):
    loaded = make_loaded(head_size=size, context=33)
    tokens = [tokens_of(loaded, 33)]
    decoder = make_decoder(loaded)
    assert isinstance(decoder, EngineDecoder)
    torch.testing.assert_close(
        decoder.feed(tokens), TorchDecoder(loaded, 1).feed(tokens), atol=0.05, rtol=0
    )


# Without the engine -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_products_give_the_logits_of_the_dequantized_weights(make_loaded, shape, kind):
    loaded = make_loaded(shape, kind)
    tokens = tokens_of(loaded, 60)
    expected = loaded.model(torch.tensor([tokens]))[0].double().log_softmax(dim=1)
    decoder = PackedDecoder(loaded, 1, TokenStep(loaded.config, loaded.weights))
    logits = [decoder.feed([tokens[:5]]), *(decoder.feed([[token]]) for token in tokens[5:])]
    found = torch.cat(logits).double().log_softmax(dim=1)
    nats = (expected[4:].exp() * (expected[4:] - found)).sum(dim=1)
    assert nats.mean() < 1e-4
    assert decoder.length == len(tokens)


@pytest.mark.parametrize("fields", [{"width": 96}, {"head_size": 24, "ff_width": 100}])
def test_packed_products_serve_any_shape(make_loaded, fields):
    loaded = make_loaded("gpt2", **fields)
    tokens = tokens_of(loaded, 9)
    decoder = PackedDecoder(loaded, 1, TokenStep(loaded.config, loaded.weights))
    decoder.feed([tokens[:-1]])
    found = decoder.feed([tokens[-1:]])
    expected = TorchDecoder(loaded, 1).feed([tokens])
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)


def test_sequences_of_a_packed_decoder_do_not_meet(make_loaded):
    loaded = make_loaded("grouped queries, tied", "int4 in groups")
    step = TokenStep(loaded.config, loaded.weights)
    batch, alone = PackedDecoder(loaded, 3, step), PackedDecoder(loaded, 1, step)
    prompt, rows = tokens_of(loaded, 20), [tokens_of(loaded, 5, seed) for seed in range(3)]
    batch.feed([prompt])
    together = [batch.feed([[row[place]] for row in rows]) for place in range(5)]
    for number, row in enumerate(rows):
        alone.reset()
        alone.feed([prompt])
        for token, found in zip(row, together, strict=True):
            assert torch.equal(alone.feed([[token]])[0], found[number])


# Threads and processes ----------------------------------------------------------------------------


def test_several_threads_decode_at_once(make_loaded):
    loaded = make_loaded("gpt2", "int4")
    tokens = tokens_of(loaded, 100)
    make_decoder(loaded)
    expected = [make_decoder(loaded).feed([tokens[:end]]) for end in (60, 70, 80, 90)]
    found = [None] * 4

    def decode(index):
        for _ in range(20):
            decoder = make_decoder(loaded)
            decoder.feed([tokens[:50]])
            for token in tokens[50 : 60 + 10 * index]:
                found[index] = decoder.feed([[token]])

    torch.set_num_threads(2)
    try:
        threads = [threading.Thread(target=decode, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_decodes(make_loaded):
    loaded = make_loaded()
    tokens = tokens_of(loaded, 50)
    torch.set_num_threads(2)
    try:
        expected = make_decoder(loaded).feed([tokens])
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(make_decoder(loaded).feed([tokens]), expected) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(1)


# Giving way ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{"width": 96}, {"ff_width": 100}, {"head_size": 24}, {"head_size": 8}]
)
def test_other_shapes_are_left_to_torch(make_loaded, fields):
    assert isinstance(make_decoder(make_loaded(**fields)), TorchDecoder)


def test_matrices_that_are_not_quantized_are_left_to_torch(make_loaded):
    loaded = make_loaded()
    loaded.weights["head.weight"] = loaded.model.head.weight.half()
    assert isinstance(make_decoder(loaded), TorchDecoder)
    assert isinstance(make_decoder(replace(make_loaded(), weights=None)), TorchDecoder)


def test_only_a_model_of_codes_on_a_cpu_has_a_token_step(make_loaded, monkeypatch):
    loaded = make_loaded()
    assert replace(loaded, weights=None).token_step is None
    plain = loaded.weights | {"head.weight": loaded.model.head.weight.half()}
    assert make_token_step(loaded.config, plain) is None
    monkeypatch.setattr(token_step.sys, "platform", "win32")
    assert make_token_step(loaded.config, loaded.weights) is None


def test_without_a_library_torch_decodes(make_loaded, monkeypatch):
    monkeypatch.setattr(engine, "library", lambda: None)
    assert isinstance(make_decoder(make_loaded()), TorchDecoder)


# With a file --------------------------------------------------------------------------------------


def test_an_int8_file_decodes_with_the_engine(make_loaded, checkpoint, tmp_path):
    model = make_loaded("gpt2").model
    stored = Checkpoint(model.config, model.state_dict(), checkpoint.tokenizer, {})
    quantize_checkpoint(stored, "int8").save(tmp_path / "int8.pt")
    loaded = load_model(tmp_path / "int8.pt")
    tokens = [tokens_of(loaded, 20)]
    found = make_decoder(loaded).feed(tokens)
    assert loaded.engine is not None and "model" not in vars(loaded)  # which takes time to make
    torch.testing.assert_close(found, TorchDecoder(loaded, 1).feed(tokens), atol=0.05, rtol=0)
