"""The model is Qwen3 or GPT-2 to the last weight, sees no future, and decodes as it trains."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from stages.lm.model import fused
from stages.lm.model.attention import KVCache

SHAPES = {
    "qwen3": {"arch": "qwen3"},
    "qwen3 grouped": {"arch": "qwen3", "kv_heads": 2},
    "qwen3 one kv head, tied": {"arch": "qwen3", "kv_heads": 1, "tie_embeddings": True},
    "gpt2": {"arch": "gpt2", "tie_embeddings": True},
    "gpt2 untied": {"arch": "gpt2"},
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


@pytest.fixture
def tokens(make_config):
    config = make_config()
    generator = torch.Generator().manual_seed(5)
    return torch.randint(config.vocab_size, (3, config.context), generator=generator)


# Against transformers -----------------------------------------------------------------------------


def qwen3_twin(model):
    """transformers' own Qwen3 with the same weights."""
    config = model.config
    twin = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            intermediate_size=config.ff_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_size,
            max_position_embeddings=config.context,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_base},
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    )
    ours = model.state_dict()
    theirs = {
        "model.embed_tokens.weight": ours["token_embedding.weight"][: config.vocab_size],
        "model.norm.weight": ours["final_norm.weight"],
    }
    head = "token_embedding.weight" if config.tie_embeddings else "head.weight"
    theirs["lm_head.weight"] = ours[head][: config.vocab_size]
    sizes = [count * config.head_size for count in (config.heads, config.kv_heads, config.kv_heads)]
    for layer in range(config.layers):
        here, there = f"blocks.{layer}.", f"model.layers.{layer}."
        for name, rows in zip("qkv", ours[here + "attention.qkv.weight"].split(sizes), strict=True):
            theirs[f"{there}self_attn.{name}_proj.weight"] = rows
        gate, up = ours[here + "feed_forward.gate_up.weight"].chunk(2)
        theirs |= {
            there + "mlp.gate_proj.weight": gate,
            there + "mlp.up_proj.weight": up,
            there + "mlp.down_proj.weight": ours[here + "feed_forward.down.weight"],
            there + "self_attn.o_proj.weight": ours[here + "attention.out.weight"],
            there + "self_attn.q_norm.weight": ours[here + "attention.query_norm.weight"],
            there + "self_attn.k_norm.weight": ours[here + "attention.key_norm.weight"],
            there + "input_layernorm.weight": ours[here + "attention_norm.weight"],
            there + "post_attention_layernorm.weight": ours[here + "feed_forward_norm.weight"],
        }
    twin.load_state_dict(theirs)
    return twin.eval()


def gpt2_twin(model):
    """transformers' own GPT-2 with the same weights; its Conv1D holds matrices transposed."""
    config = model.config
    twin = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.ff_width,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            tie_word_embeddings=config.tie_embeddings,
            attn_implementation="eager",
        )
    )
    ours = model.state_dict()
    head = "token_embedding.weight" if config.tie_embeddings else "head.weight"
    theirs = {
        "transformer.wte.weight": ours["token_embedding.weight"][: config.vocab_size],
        "transformer.wpe.weight": ours["position_embedding.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
        "lm_head.weight": ours[head][: config.vocab_size],
    }
    names = {
        "ln_1": "attention_norm",
        "ln_2": "feed_forward_norm",
        "attn.c_attn": "attention.qkv",
        "attn.c_proj": "attention.out",
        "mlp.c_fc": "feed_forward.up",
        "mlp.c_proj": "feed_forward.down",
    }
    for layer in range(config.layers):
        for there, here in names.items():
            for kind in ("weight", "bias"):
                # `.T` leaves the vectors of norms and biases as they are.
                tensor = ours[f"blocks.{layer}.{here}.{kind}"]
                theirs[f"transformer.h.{layer}.{there}.{kind}"] = (
                    tensor.T if tensor.ndim == 2 else tensor
                )
    twin.load_state_dict(theirs)
    return twin.eval()


def twin_of(model):
    return (qwen3_twin if model.config.arch == "qwen3" else gpt2_twin)(model)


@EACH_SHAPE
def test_logits_equal_those_of_transformers(make_model, tokens, shape):
    model = make_model(**shape)
    with torch.no_grad():
        ours, theirs = model(tokens), twin_of(model)(tokens).logits
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@EACH_SHAPE
def test_gradients_equal_those_of_transformers(make_model, tokens, shape):
    model = make_model(**shape)
    twin = twin_of(model)
    model.requires_grad_(True)
    for network in (model, twin):
        logits = network(tokens[:, :-1])
        logits = logits if network is model else logits.logits
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    theirs = {name: parameter.grad for name, parameter in twin.named_parameters()}
    vocab_size = model.config.vocab_size
    if model.config.arch == "qwen3":
        qkv = torch.cat([theirs[f"model.layers.0.self_attn.{name}_proj.weight"] for name in "qkv"])
        pairs = [
            ("token_embedding.weight", theirs["model.embed_tokens.weight"]),
            ("blocks.0.attention.qkv.weight", qkv),
            (
                "blocks.0.attention.key_norm.weight",
                theirs["model.layers.0.self_attn.k_norm.weight"],
            ),
            ("blocks.1.feed_forward.down.weight", theirs["model.layers.1.mlp.down_proj.weight"]),
            ("final_norm.weight", theirs["model.norm.weight"]),
        ]
    else:
        pairs = [
            ("token_embedding.weight", theirs["transformer.wte.weight"]),
            ("position_embedding.weight", theirs["transformer.wpe.weight"]),
            ("blocks.0.attention.qkv.weight", theirs["transformer.h.0.attn.c_attn.weight"].T),
            ("blocks.0.attention.qkv.bias", theirs["transformer.h.0.attn.c_attn.bias"]),
            ("blocks.1.feed_forward.up.weight", theirs["transformer.h.1.mlp.c_fc.weight"].T),
            ("blocks.1.attention_norm.weight", theirs["transformer.h.1.ln_1.weight"]),
        ]
    for name, expected in pairs:
        found = ours[name][:vocab_size] if name == "token_embedding.weight" else ours[name]
        assert expected.abs().max() > 1e-4, name
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=name)


@EACH_SHAPE
@pytest.mark.parametrize("part", [1, 200, 1 << 18])
def test_the_loss_and_its_gradients_are_those_of_the_logits(
    make_model, tokens, shape, part, monkeypatch
):
    monkeypatch.setattr(fused, "LOGITS_CHUNK", part)
    model = make_model(**shape).double().requires_grad_(True)
    parameters = dict(model.named_parameters())
    logits = model(tokens[:, :-1])
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    pairs = zip(
        torch.autograd.grad(loss / 3, parameters.values()),
        torch.autograd.grad(expected / 3, parameters.values()),
        strict=True,
    )
    for name, (ours, theirs) in zip(parameters, pairs, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9, msg=name)


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_the_loss_in_bf16_is_as_close_as_composed_from_single_operations(make_model, tokens, arch):
    model = make_model(arch=arch).requires_grad_(True)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def found(bf16, fused):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if fused:
                loss = model(inputs, targets=targets)
            else:
                loss = F.cross_entropy(model(inputs).float().flatten(0, 1), targets.flatten())
        return loss.item(), torch.autograd.grad(loss, model.head.weight)[0]

    exact_loss, exact = found(bf16=False, fused=False)
    ours_loss, ours = found(bf16=True, fused=True)
    theirs_loss, theirs = found(bf16=True, fused=False)
    assert abs(ours_loss - exact_loss) < 2 * abs(theirs_loss - exact_loss) + 1e-3
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm() < 0.05 * exact.norm()


# What a token can see -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_losses_that_a_gpu_takes_of_padded_rows_are_the_cpu_s(share):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(rows, 8, generator=generator).requires_grad_() for rows in (20, 64))
    targets = torch.randint(0, 60, (20,), generator=generator)
    targets[torch.rand(20, generator=generator) >= share] = -1
    losses = [
        fused.head_loss(x, weight, targets, 60, partial=True),
        fused.plain_head_loss(x, weight, targets, 60),
        fused._head_loss_in_chunks(x, weight, targets, 60, partial=True),
    ]
    expected, *others = [(loss, *torch.autograd.grad(loss, (x, weight))) for loss in losses]
    for other in others:
        torch.testing.assert_close(other, expected)


@EACH_SHAPE
@pytest.mark.parametrize("place", [1, 7, 15])
def test_a_token_changes_no_logit_before_it_by_a_single_bit(make_model, tokens, shape, place):
    model, other = make_model(**shape), tokens.clone()
    other[:, place] = (other[:, place] + 1) % model.config.vocab_size
    before, after = model(tokens), model(other)
    assert torch.equal(before[:, :place], after[:, :place])
    assert not torch.equal(before[:, place:], after[:, place:])


@EACH_SHAPE
def test_a_token_changes_no_logit_before_it_with_a_cache(make_model, tokens, shape):
    model, other = make_model(**shape), tokens.clone()
    other[:, 12] = (other[:, 12] + 1) % model.config.vocab_size
    results = []
    for rows in (tokens, other):
        cache = KVCache(model.config, len(rows), model.token_embedding.weight)
        results.append(torch.cat([model(part, cache) for part in rows.split([5, 10, 1], 1)], 1))
    assert torch.equal(results[0][:, :12], results[1][:, :12])
    assert not torch.equal(results[0][:, 12:], results[1][:, 12:])


@EACH_SHAPE
def test_every_earlier_token_counts(make_model, tokens, shape):
    model = make_model(**shape)
    last = model(tokens)[:, -1]
    for place in range(tokens.size(1)):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % model.config.vocab_size
        assert not torch.equal(model(other)[:, -1], last)


@EACH_SHAPE
def test_a_sequence_does_not_depend_on_its_batch(make_model, tokens, shape):
    model = make_model(**shape)
    together = model(tokens)
    for row in range(len(tokens)):
        torch.testing.assert_close(
            model(tokens[row : row + 1])[0], together[row], atol=1e-5, rtol=0
        )


@EACH_SHAPE
@pytest.mark.parametrize("lengths", [[1] * 16, [9] + [1] * 7, [4, 4, 8], [16]], ids=str)
def test_cached_pieces_give_the_logits_of_the_whole(make_model, tokens, shape, lengths):
    model = make_model(**shape)
    cache = KVCache(model.config, len(tokens), model.token_embedding.weight)
    pieces = [model(part, cache) for part in tokens.split(lengths, dim=1)]
    assert cache.length == tokens.size(1)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), atol=1e-4, rtol=0)


def test_a_cache_holds_key_value_heads_only_and_grows_with_the_text(make_config):
    cache = KVCache(make_config(kv_heads=2, context=5000), 3, torch.empty(0))
    parts = torch.randn(2, 3, 2, 700, 8).split([200, 100, 1, 399], dim=3)
    for part, room in zip(parts, (256, 512, 512, 1024), strict=True):
        for layer in (0, 1):
            keys, values = cache.append(layer, part[layer], part[layer] + 1)
        cache.length += part.size(3)
        assert cache.keys.shape == cache.values.shape == (2, 3, 2, room, 8)
    expected = torch.cat(parts, dim=3)[1]
    assert torch.equal(keys, expected) and torch.equal(values, expected + 1)


@EACH_SHAPE
def test_more_tokens_than_the_context_are_refused(make_model, tokens, shape):
    model = make_model(**shape)
    with pytest.raises(AssertionError, match="17 tokens do not fit 16"):
        model(torch.zeros(1, 17, dtype=torch.int64))
    cache = KVCache(model.config, 3, model.token_embedding.weight)
    model(tokens, cache)
    with pytest.raises(AssertionError, match="17 tokens do not fit 16"):
        model(tokens[:, :1], cache)


# Vocabulary and first weights ---------------------------------------------------------------------


@pytest.mark.parametrize(("size", "padded"), [(1, 64), (64, 64), (65, 128), (50257, 50304)])
def test_the_vocabulary_is_padded_to_a_multiple_of_64(make_config, size, padded):
    assert make_config(vocab_size=size).padded_vocab == padded


@EACH_SHAPE
def test_the_padding_of_the_vocabulary_is_never_seen_or_trained(make_model, tokens, shape):
    model = make_model(**shape).requires_grad_(True)
    logits = model(tokens)
    assert logits.size(-1) == model.config.vocab_size < model.config.padded_vocab
    logits.logsumexp(-1).sum().backward()
    head = model.token_embedding if model.config.tie_embeddings else model.head
    assert not head.weight.grad[model.config.vocab_size :].any()
    assert head.weight.grad[: model.config.vocab_size].any()


@EACH_SHAPE
def test_the_same_seed_gives_the_same_first_weights_and_another_others(initialised_model, shape):
    first, same = initialised_model(seed=1, **shape), initialised_model(seed=1, **shape)
    other = initialised_model(seed=2, **shape).state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[name])
    assert any(not torch.equal(t, other[name]) for name, t in first.state_dict().items())


def test_an_untied_qwen3_first_finds_every_token_equally_likely(initialised_model, tokens):
    logits = initialised_model("qwen3")(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss.item() == pytest.approx(math.log(75), abs=1e-6)


@EACH_SHAPE
def test_the_first_loss_is_close_to_uniform_and_has_a_gradient(initialised_model, tokens, shape):
    model = initialised_model(**shape)
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    assert loss.item() == pytest.approx(math.log(75), abs=0.3)
    assert any(parameter.grad.any() for parameter in model.parameters())


def test_gpt2_starts_with_the_deviations_of_its_paper(initialised_model):
    model = initialised_model("gpt2", width=256, head_size=64, ff_width=512, vocab_size=512)
    block = model.blocks[0]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.attention.out.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert block.feed_forward.down.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert model.token_embedding.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not block.attention.qkv.bias.any() and block.attention_norm.weight.eq(1).all()


@EACH_SHAPE
def test_shared_weights_are_counted_once(make_model, shape):
    model = make_model(**shape)
    expected = sum(tensor.numel() for tensor in model.state_dict().values())
    assert model.parameter_count() == expected


@EACH_SHAPE
def test_dropout_acts_in_training_alone(make_model, tokens, shape):
    model = make_model(**shape, dropout=0.5)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_no_buffer_is_stored_with_the_weights(make_model):
    model = make_model("qwen3")
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
