"""Weights that exist: read as others mean them, continued as a run of our own, or refused."""

import json
import os
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
import warm
import yaml
from safetensors.torch import load_file, save_file
from test_end_to_end import digests, new_project, python, set_params, wait_for_state
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Theirs
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

from stages.corpus import base_settings, check_other_text
from stages.evaluate import starting_model
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.export.huggingface import write_huggingface
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import Checkpoint, build_model
from stages.lm.model.transformer import Transformer
from stages.lm.pretrained import files as base_files
from stages.lm.pretrained.hf_weights import huggingface_tensors
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.init_from import load_init_from
from stages.lm.settings.recipes import FROM_BASE, automatic
from stages.lm.text.tokenizer import PATTERNS

ROWS, ORDINARY = 90, 87
MIXED = (
    "Hello world, IT'S a don'tcare — 3.14159 and 1234567!\r\n\r\n  if (x):\n\t\treturn  y   \n\n\n"
    "Привет, мир! Ёжик. 我们在这里学习语言模型。 नमस्ते दुनिया مرحبا\n"
    "🙂👨‍👩‍👧 naïve \x00\x1f\u2028 'Ll  "
)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """`data/base/`, elsewhere."""
    monkeypatch.setattr(paths, "BASE", tmp_path / "base")
    paths.BASE.mkdir()
    return paths.BASE


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "vocab_size": ROWS}
ROTARY = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 24},
    **{"vocab_size": ROWS, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
LLAMA3 = {
    **{"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN["original_max_position_embeddings"] = 16
NARROW = {"head_dim": 8}
GEMMA = NARROW | {
    **{"query_pre_attn_scalar": 8, "sliding_window": 5, "num_hidden_layers": 6},
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
MODELS = {
    "gpt2": ("gpt2", {}),
    "gpt2 untied": ("gpt2", {"tie_word_embeddings": False, "n_inner": 40}),
    "qwen3": ("qwen3", {}),
    "qwen3 tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3 one kv head": ("qwen3", {"num_key_value_heads": 1, "head_dim": 4}),
    "llama": ("llama", NARROW | {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "llama, linear": ("llama", NARROW | {"rope_parameters": LINEAR}),
    "mistral": ("mistral", {"sliding_window": 7}),
    "qwen2": ("qwen2", NARROW | {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", NARROW | {"rope_parameters": YARN}),
    "gemma3": ("gemma3_text", GEMMA),
    "smollm3": ("smollm3", NARROW | {"num_hidden_layers": 4}),
    "olmo2": ("olmo2", NARROW | {"rms_norm_eps": 1e-5}),
}
"""transformers' name of the family, and what is special."""
EACH_MODEL = pytest.mark.parametrize("kind", MODELS)


def saved(kind, dtype=torch.float32, **how):
    """A model of transformers with random weights, norms and biases too, in `data/base/theirs`."""
    family, fields = MODELS[kind]
    torch.manual_seed(1)
    shape = (GPT2 if family == "gpt2" else ROTARY) | fields
    config = AutoConfig.for_model(family, pad_token_id=None, **shape)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_norm = ("norm" in name or "ln_" in name) and name.endswith("weight")
            mean = 1.0 if is_norm and family != "gemma3_text" else 0.0
            parameter.normal_(mean, 0.2)
    model.to(dtype).save_pretrained(paths.BASE / "theirs", **how)
    return AutoModelForCausalLM.from_pretrained(paths.BASE / "theirs", dtype=torch.float32).eval()


def ours(vocab_size=ORDINARY, context=24):
    base = PretrainedModel.open("theirs")
    config = base.config_for(vocab_size, context, dropout=0.0)
    return build_model(config, base.state_dict(config))


def some_tokens(size=ORDINARY, context=24):
    return torch.randint(size, (3, context), generator=torch.Generator().manual_seed(1))


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


# Weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@EACH_MODEL
def test_logits_are_those_of_transformers(kind, dtype):
    theirs = saved(kind, dtype)
    tokens = some_tokens()
    with torch.inference_mode():
        expected, found = theirs(tokens).logits[..., :ORDINARY], ours()(tokens)
    assert found.dtype == torch.float32 and found.std() > 0.1
    assert (found - expected).abs().max() < 1e-5


def test_many_files_and_a_shorter_context_give_the_same_logits():
    for kind in ("qwen3", "gpt2"):
        theirs = saved(kind, max_shard_size="20KB")
        assert len(base_files.weight_files(paths.BASE / "theirs")) > 2
        tokens = some_tokens(context=9)
        with torch.inference_mode():
            difference = ours(context=9)(tokens) - theirs(tokens).logits[..., :ORDINARY]
        assert difference.abs().max() < 1e-5
        shutil.rmtree(paths.BASE / "theirs")


def test_the_files_of_the_first_gpt2_are_read():
    """Without the first word of each name, with the causal mask, with the tied head once more."""
    theirs = saved("gpt2")
    path = paths.BASE / "theirs" / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file(tensors, path)
    with torch.inference_mode():
        difference = ours()(some_tokens()) - theirs(some_tokens()).logits[..., :ORDINARY]
    assert difference.abs().max() < 1e-5
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path)
    assert "lm_head.weight differs from the embedding" in refusal(ours)


@EACH_MODEL
def test_a_step_of_training_has_the_loss_and_gradients_of_transformers(kind):
    theirs = saved(kind).train()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    base = PretrainedModel.open("theirs")
    model = Transformer(base.config_for(ROWS, 24, dropout=0.0))
    model.load_state_dict(base.state_dict(model.config))
    tokens = some_tokens(ROWS)
    loss = model(tokens[:, :-1], targets=tokens[:, 1:])
    expected = theirs(tokens, labels=tokens).loss
    assert abs(loss.item() - expected.item()) < 1e-5
    loss.backward()
    expected.backward()
    found = huggingface_tensors(model.config, {n: p.grad for n, p in model.named_parameters()})
    for name, parameter in theirs.named_parameters():
        assert (found.pop(name) - parameter.grad).abs().max() < 1e-5, name
    assert not found


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_what_we_export_comes_back_bit_for_bit(arch, make_model, tokenizer):
    model = make_model(arch, vocab_size=tokenizer.vocab_size, kv_heads=4, tie_embeddings=True)
    loaded = LoadedModel(model.config, lambda: model, tokenizer, "float32", {}, 0)
    (paths.BASE / "theirs").mkdir()
    write_huggingface(loaded, paths.BASE / "theirs")
    again = ours(tokenizer.vocab_size, 16)
    tokens = some_tokens(tokenizer.vocab_size, 16)
    assert torch.equal(again(tokens), model(tokens))
    found = base_tokenizer("theirs")
    assert found.tokens == tokenizer.tokens and found.merges() == tokenizer.merges()


def test_a_checkpoint_of_ours_comes_back_bit_for_bit(checkpoint, folder):
    checkpoint.save(folder / "mine.pt")
    base = PretrainedModel.open("mine.pt")
    config = base.config_for(checkpoint.config.vocab_size, 8, dropout=0.25)
    assert (config.context, config.dropout) == (8, 0.25)
    weights = base.state_dict(config)
    assert weights.keys() == checkpoint.tensors.keys()
    assert all(torch.equal(weights[name], checkpoint.tensors[name]) for name in weights)
    assert base_tokenizer("mine.pt").to_text() == checkpoint.tokenizer["vocabulary"]
    assert "tokens, but the vocabulary has" in refusal(base.config_for, 299, 8, 0.0)


def test_the_start_is_scored_only_for_a_model_that_began_there(checkpoint, folder, machine):
    checkpoint.save(folder / "mine.pt")
    changed = {name: tensor + 1 for name, tensor in checkpoint.tensors.items()}
    provenance = {"base_sha256": PretrainedModel.open("mine.pt").digest()}
    began = Checkpoint(checkpoint.config, changed, checkpoint.tokenizer, provenance)
    began.save(folder / "trained.pt")
    start = starting_model("mine.pt", load_model(folder / "trained.pt"), machine).model
    assert torch.equal(start.token_embedding.weight, checkpoint.tensors["token_embedding.weight"])
    Checkpoint(checkpoint.config, changed, checkpoint.tokenizer, {}).save(folder / "mine.pt")
    message = refusal(starting_model, "mine.pt", load_model(folder / "trained.pt"), machine)
    assert "did not start from these weights" in message


def adapter(base, rank=3, alpha=6, **config):
    """PEFT's files of random adapters; by the name of the weight, what they add to it."""
    place = paths.BASE / "adapted"
    place.mkdir(exist_ok=True)
    described = {"peft_type": "LORA", "base_model_name_or_path": "owner/theirs", "r": rank}
    described |= {"lora_alpha": alpha, "bias": "none", "modules_to_save": None} | config
    (place / "adapter_config.json").write_text(json.dumps(described))
    generator, tensors, added = torch.Generator().manual_seed(1), {}, {}
    scale = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    for name, weight in base.items():
        if re.search(r"(q_proj|down_proj|c_attn)\.weight", name):
            shape = weight.T.shape if "c_attn" in name else weight.shape
            a = torch.randn(rank, shape[1], generator=generator) / 5
            b = torch.randn(shape[0], rank, generator=generator) / 5
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
            added[name] = (scale * b @ a).T if "c_attn" in name else scale * b @ a
    save_file(tensors, place / "adapter_model.safetensors")
    return added


@pytest.mark.parametrize(("kind", "config"), [("llama", {}), ("gpt2", {"use_rslora": True})])
def test_adapters_of_peft_are_merged_on_reading(kind, config, text):
    theirs = saved(kind)
    added = adapter(theirs.state_dict(), **config)
    before = PretrainedModel.open("theirs").digest()
    with torch.no_grad():
        for name, change in added.items():
            theirs.get_parameter(name).add_(change)
    base = PretrainedModel.open("adapted")
    model = build_model(base.config, base.state_dict(base.config))
    tokens = some_tokens()
    with torch.inference_mode():
        assert (model(tokens) - theirs(tokens).logits).abs().max() < 1e-5
    assert base.digest() != before and len(added) in (2, 4)
    their_tokenizer(None, text).save(str(paths.BASE / "theirs" / "tokenizer.json"))
    assert base_tokenizer("adapted").to_text() == base_tokenizer("theirs").to_text()


ADAPTERS = {
    "DoRA": ({"use_dora": True}, "use_dora is True, but must be False"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
    "no rank": ({"r": None}, "r is None"),
    "other base": ({"base_model_name_or_path": "owner/other"}, "does not hold that model"),
    "no base": ({"base_model_name_or_path": "../theirs/.."}, "does not hold that model"),
}


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_that_cannot_be_merged_are_refused(case):
    config, words = ADAPTERS[case]
    adapter(saved("llama").state_dict(), **config)

    def read():
        base = PretrainedModel.open("adapted")
        base.state_dict(base.config)

    message = refusal(read)
    assert words in message and "adapted" in message, message


def test_adapters_of_another_shape_are_refused():
    saved("llama")
    adapter(saved("qwen3").state_dict())
    shutil.copytree(paths.BASE / "theirs", paths.BASE / "other")
    saved("llama")
    for name, words in (("q_proj", "does not fit a matrix of shape"),):
        with pytest.raises(UserError, match=words) as caught:
            list(PretrainedModel.open("adapted").tensors())
        assert name in str(caught.value)


# Vocabularies -------------------------------------------------------------------------------------

SPECIAL = ["<|endoftext|>", "<think>"]


def their_tokenizer(pattern, text):
    """A byte-level BPE of `tokenizers`, cut as GPT-2's or by a pattern as Qwen's."""
    tokenizer = Theirs(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    parts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated")] if pattern else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*parts, byte_level]) if parts else byte_level
    tokenizer.normalizer = normalizers.NFC() if pattern else None
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator([text, MIXED * 3], trainer)
    tokenizer.add_special_tokens(SPECIAL[:1])
    tokenizer.add_tokens(SPECIAL[1:])
    return tokenizer


def random_texts(text):
    draw = random.Random(1)
    pieces = [*"abc  \n\t'1.我ё🙂", "the", "lazy", "'s", "  ", *text.split()[:40], *MIXED.split()]
    return ["".join(draw.choices(pieces, k=draw.randrange(40))) for _ in range(300)]


def write_base(tokenizer, model_type="qwen3"):
    place = paths.BASE / "theirs"
    place.mkdir(exist_ok=True)
    tokenizer.save(str(place / "tokenizer.json"))
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    return place


def same_ids(found, theirs, *texts):
    assert found.vocab_size == theirs.get_vocab_size()
    for piece in texts:
        assert found.encode(piece.encode()) == theirs.encode(piece, add_special_tokens=False).ids


@pytest.mark.parametrize("pattern", [None, PATTERNS["qwen2"], r"\w+|\s"])
def test_a_tokenizer_json_gives_the_same_ids(pattern, text):
    theirs = their_tokenizer(pattern, text)
    write_base(theirs)
    found = base_tokenizer("theirs")
    same_ids(found, theirs, text, MIXED, *random_texts(text))
    assert list(found.control.values()) == SPECIAL[:1]
    assert found.decode(found.encode(b"<|endoftext|><think>\xff")) == b"<|endoftext|><think>\xff"
    assert found.encode(b"<think>") == [theirs.token_to_id("<think>")]
    assert tokenizer_settings(found) == {
        "tokenize.tokenizer": "base", "tokenize.vocab_size": theirs.get_vocab_size()
    }  # fmt: skip


def test_a_vocab_json_with_merges_gives_the_same_ids(text):
    theirs = their_tokenizer(None, text)
    place = write_base(theirs, "gpt2")
    (place / "tokenizer.json").unlink()
    theirs.model.save(str(place))
    vocab = json.loads((place / "vocab.json").read_text("utf-8"))
    vocab = {SPECIAL[0]: 0} | {token: number + 1 for token, number in vocab.items()}
    (place / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    found = base_tokenizer("theirs")
    assert found.control == {0: SPECIAL[0]}
    for piece in [text, MIXED, *random_texts(text)]:
        assert found.encode(piece.encode()) == [token + 1 for token in theirs.encode(piece).ids]
    (place / "merges.txt").unlink()
    assert "merges.txt is missing" in refusal(base_tokenizer, "theirs")


def test_qwens_own_tokenizer_of_transformers_gives_the_same_ids(text):
    written = json.loads(their_tokenizer(PATTERNS["qwen2"], text).to_str())["model"]
    theirs = Qwen2Tokenizer(
        vocab=written["vocab"], merges=[tuple(pair) for pair in written["merges"]]
    )
    theirs.save_pretrained(paths.BASE / "theirs")
    found = base_tokenizer("theirs")
    assert "<|endoftext|>" in found.control.values() and found.chat.eos_token == "<|endoftext|>"
    for piece in [text, MIXED, *random_texts(text)]:
        assert found.encode(piece.encode()) == theirs(piece)["input_ids"]


def edited(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    if value is None:
        del document[last]
    else:
        document[last] = value


TOKENIZERS = {
    "other model": ((("model", "type"), "WordPiece"), "'WordPiece', neither BPE nor Unigram"),
    "dropout": ((("model", "dropout"), 0.1), "dropout 0.1"),
    "normalizer": ((("normalizer",), {"type": "BertNormalizer"}), "normalizer is 'BertNorm"),
    "decoder": ((("decoder",), {"type": "Fuse"}), "decoder does not say"),
    "no vocabulary": ((("model", "vocab"), None), "cannot be used: tokenizers cannot read it"),
    "no text": ((("model", "merges"), [5]), "cannot be used: tokenizers cannot read it"),
    "no model": ((("model",), None), "holds no complete vocabulary (KeyError"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_vocabulary_that_cannot_be_used_is_refused(case, text):
    (path, value), words = TOKENIZERS[case]
    place = write_base(their_tokenizer(None, text)) / "tokenizer.json"
    document = json.loads(place.read_text("utf-8"))
    edited(document, path, value)
    place.write_text(json.dumps(document), "utf-8")
    message = refusal(base_tokenizer, "theirs")
    assert words in message and "theirs" in message and "init_from" in message, message


# What is refused ----------------------------------------------------------------------------------

CONFIGS = {
    "qwen3": [
        ("model_type", "gpt_neox", "one of gemma3_text, gpt2, llama"),
        ("model_type", None, "one of gemma3_text, gpt2, llama"),
        ("hidden_act", "gelu", "'silu'"),
        ("rms_norm_eps", "1e-6", "a number from 0 to 0.1"),
        ("attention_bias", True, "False"),
        ("use_sliding_window", True, "False"),
        ("layer_types", ["full_attention", "sliding_attention"], "full_attention in every layer"),
        ("layer_types", 5, "full_attention in every layer"),
        ("rope_parameters", {"rope_type": "longrope", "rope_theta": 1e4}, "linear, llama3 or yarn"),
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}, "positive number as factor"),
        ("rope_parameters", YARN | {"mscale": 1.0}, "without mscale"),
        ("rope_parameters", LLAMA3 | {"low_freq_factor": 8.0}, "an impossible model"),
        ("rope_parameters", {"partial_rotary_factor": 0.5}, "without partial_rotary_factor"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "x"}, "rope_theta is 'x'"),
        ("rope_scaling", {"type": "dynamic", "factor": 2.0}, "linear, llama3 or yarn"),
        ("quantization_config", {"bits": 4}, "None"),
        ("hidden_size", 0, "a positive whole number"),
        ("head_dim", None, "a positive whole number"),
        ("head_dim", 15, "an impossible model"),
        ("tie_word_embeddings", "no", "true or false"),
    ],
    "llama": [("mlp_bias", True, "False")],
    "mistral": [("sliding_window", "x", "a whole number or null")],
    "gemma3": [
        ("query_pre_attn_scalar", 32, "8, the size of a head"),
        ("final_logit_softcapping", 30.0, "None"),
        ("layer_types", ["sliding_attention"] * 6, "the usual ones"),
        ("rope_parameters", {"sliding_attention": {}}, "in layers with a window"),
    ],
    "smollm3": [("no_rope_layers", [1, 1, 1, 1], "the usual ones")],
    "gpt2": [
        ("activation_function", "relu", "'gelu_new'"),
        ("layer_norm_epsilon", 0.0, "a number from 0 to 0.1"),
        ("scale_attn_weights", False, "True"),
        ("scale_attn_by_inverse_layer_idx", True, "False"),
        ("add_cross_attention", True, "False"),
        ("n_layer", 201, "an impossible model"),
        ("n_head", 5, "a divisor of n_embd 32"),
    ],
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_our_graph_cannot_express_is_refused(kind):
    saved(kind)
    path = paths.BASE / "theirs" / "config.json"
    whole = json.loads(path.read_text("utf-8"))
    for key, value, words in CONFIGS[kind]:
        document = whole | {key: value}
        if value is None:
            del document[key]
        path.write_text(json.dumps(document), "utf-8")
        message = refusal(PretrainedModel.open, "theirs")
        assert words in message and "theirs" in message and "init_from" in message, message
        assert "an impossible model" in words or key.split("_")[0] in message
    path.write_text("[]", "utf-8")
    assert "not a JSON object" in refusal(PretrainedModel.open, "theirs")
    path.write_text("{", "utf-8")
    assert "config.json is not readable as JSON" in refusal(PretrainedModel.open, "theirs")
    path.unlink()
    assert "config.json is missing" in refusal(PretrainedModel.open, "theirs")


NORM = "model.norm.weight"
TENSORS = {
    "missing": ({NORM: None}, f"the tensor {NORM} is missing"),
    "unknown": ({"model.extra.weight": torch.ones(1)}, "model.extra.weight is a tensor that"),
    "shape": ({NORM: torch.ones(31)}, "of shape [31], but must be floats of shape [32]"),
    "whole numbers": ({NORM: torch.ones(32, dtype=torch.int8)}, "is torch.int8"),
    "infinite": ({NORM: torch.full((32,), 1e300, dtype=torch.float64)}, "that is not finite"),
    "no number": ({NORM: torch.full((32,), torch.nan)}, "that is not finite"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit_are_refused(case):
    change, words = TENSORS[case]
    saved("qwen3")
    path = paths.BASE / "theirs" / "model.safetensors"
    tensors = {name: t for name, t in (load_file(path) | change).items() if t is not None}
    save_file(tensors, path)
    message = refusal(ours)
    assert words in message and "theirs" in message and "init_from" in message, message


def test_files_that_are_damaged_missing_or_elsewhere_are_refused(folder):
    saved("qwen3", max_shard_size="20KB")
    index = folder / "theirs" / "model.safetensors.index.json"
    whole = json.loads(index.read_text("utf-8"))
    first = base_files.weight_files(folder / "theirs")[0]
    data = first.read_bytes()
    first.write_bytes(data[: len(data) // 2])
    assert "is not readable as safetensors" in refusal(ours)
    first.unlink()
    assert f"{first.name} is missing" in refusal(ours)
    (folder / "elsewhere.safetensors").write_bytes(data)
    for name in ("../elsewhere.safetensors", str(folder / "elsewhere.safetensors"), 5):
        whole["weight_map"][NORM] = name
        index.write_text(json.dumps(whole), "utf-8")
        assert "does not say which files" in refusal(ours)
    index.unlink()
    assert "neither model.safetensors nor" in refusal(ours)
    (folder / "mine.pt").write_bytes(b"no archive")
    message = refusal(PretrainedModel.open, "mine.pt")
    assert "mine.pt is damaged" in message and "copy it there again" in message
    assert "remove" not in message
    message = refusal(PretrainedModel.open, "other")
    assert "init_from is 'other'" in message and "mine.pt, theirs" in message


@pytest.mark.parametrize("value", [None, 5, "../x", "a/b/c", "", ".hidden", "x" * 999, ["scratch"]])
def test_another_init_from_is_refused(value, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({} if value is None else {"init_from": value}), "utf-8")
    assert "init_from" in refusal(load_init_from, path)


def test_another_text_must_be_in_data_base(folder):
    (folder / "old.txt").write_bytes(b"a few words")
    check_other_text("")
    check_other_text("old.txt")
    (folder / "short.txt").write_bytes(b"a")
    for name in ("new.txt", "short.txt", "../base/old.txt", ".", "x" * 999):
        assert f"evaluate.also is {name!r}" in refusal(check_other_text, name)


# Settings -----------------------------------------------------------------------------------------


def test_the_base_decides_its_shape_and_gentler_rates(text, params):
    saved("qwen3")
    write = params[1]
    their_tokenizer(None, text).save(str(paths.BASE / "theirs" / "tokenizer.json"))
    assert "has weights for 90 tokens, but the vocabulary has" in refusal(base_settings, "theirs")
    values = PretrainedModel.open("theirs").fixed_settings()
    for key in ("arch", "layers", "heads", "kv_heads", "width", "ff_width", "tie_embeddings"):
        write("model", key, "auto")
    auto = automatic(1_000_000, write("model", "context", "auto"), values)
    assert values.items() <= auto.chosen().items() and auto.values["model.init"] == "base"
    assert FROM_BASE["muon"][0][1].items() <= auto.values.items()
    assert "model.width = 32 (auto: init_from)" in auto.lines("model")
    large = values | {"model.context": 40_960, "model.width": 512}
    large = automatic(1_000_000, params[0], large).values
    assert (large["model.context"], large["train.split_tokens"]) == (1024, 0.0)
    assert automatic(1_000, params[0], values).values["train.epochs"] == 4
    assert automatic(1_000_000, params[0], values).values["train.epochs"] == 2
    assert FROM_BASE["muon"][1][1].items() <= large.items()
    adamw = automatic(1_000_000, write("train", "optimizer", "adamw"), values)
    assert FROM_BASE["adamw"][0][1].items() <= adamw.values.items()
    automatic(1_000_000, write("model", "context", 16), values)
    for key, value in [("context", 25), ("width", 64), ("arch", "gpt2"), ("tie_embeddings", True)]:
        path = write("model", key, value)
        message = refusal(automatic, 1_000_000, path, values)
        assert f"model.{key} is {value!r}" in message and repr(values[f"model.{key}"]) in message
        write("model", key, "auto")
    for section, key in [("tokenize", "tokenizer"), ("model", "init")]:
        path = write(section, key, "base")
        assert "but init_from is scratch" in refusal(automatic, 1_000_000, path)
        write(section, key, "auto")


# Download -----------------------------------------------------------------------------------------


def test_a_public_model_is_downloaded_once_and_whole(monkeypatch, folder):
    import huggingface_hub

    asked = []

    def download(name, local_dir, allow_patterns):
        asked.append((name, allow_patterns))
        (local_dir / ".cache").mkdir(parents=True, exist_ok=True)
        (local_dir / "config.json").write_text("{}")
        if len(asked) == 1:
            raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    message = refusal(base_files.download_base, "some/model")
    assert "ConnectionError: no network" in message and "some--model by hand" in message
    assert not (folder / "some--model").exists()
    base_files.download_base("some/model")
    base_files.download_base("some/model")
    assert [name for name, _ in asked] == ["some/model"] * 2
    assert not {"*.bin", "*.py", "*.pt"} & set(asked[0][1])
    assert [path.name for path in (folder / "some--model").iterdir()] == ["config.json"]
    assert [path.name for path in folder.iterdir()] == ["some--model"]


# The pipeline -------------------------------------------------------------------------------------

AUTO = {"arch", "layers", "heads", "kv_heads", "width", "ff_width", "context", "init"}


def stages(place, *names):
    """Run them, and return what they print."""
    return "".join(python(place, "-m", f"stages.{name}").stdout for name in names)


@pytest.mark.slow
def test_the_pipeline_starts_from_a_checkpoint_and_resumes(tmp_path, checkpoint, text):
    place = new_project(tmp_path / "project")
    mine = place / "data" / "base" / "mine.pt"
    checkpoint.save(mine)
    (place / "data" / "base" / "old.txt").write_text(text, "utf-8")
    model = dict.fromkeys(AUTO, "auto") | {"dropout": 0.1}
    changes = {"init_from": "mine.pt", "model": model, "tokenize": {"vocab_size": "auto"}}
    set_params(place, changes | {"evaluate": {"also": "old.txt"}})
    stages(place, "corpus", "tokenize_text")
    told = stages(place, "train")
    assert "model.layers = 2 (auto: init_from)" in told
    trained = Checkpoint.load(place / "models" / "checkpoint.pt")
    assert trained.config.kv_heads == checkpoint.config.kv_heads == 2
    assert trained.provenance["init_from"] == "mine.pt"
    assert len(trained.provenance["base_sha256"]) == 64
    told = stages(place, "quantize", "evaluate")
    found = json.loads((place / "metrics" / "evaluate.json").read_text("utf-8"))
    assert found["start"].keys() == {"val", "test", "held_out"} == found["float"].keys() - {"model"}
    assert found["float"]["held_out"]["loss"] < found["start"]["held_out"]["loss"] - 0.5
    assert found["also"].keys() == {"start", "float", "quantized"}
    assert told.count(" old.txt: ") == 3 and told.count(" held-out: ") == 3
    first = (place / "metrics" / "loss.tsv").read_text("utf-8").splitlines()[1].split("\t")
    assert first[0] == "0" and float(first[3]) == pytest.approx(found["start"]["val"]["loss"], 0.02)

    before = digests(place)
    shutil.rmtree(place / "models" / "resume")
    with Path(os.devnull).open("wb") as nothing:
        process = warm.start(place, "-m", "stages.train", output=nothing)
    wait_for_state(place, process, 0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "continuing at step" in stages(place, "train")
    assert digests(place) == before

    changed = {name: tensor * 1.01 for name, tensor in checkpoint.tensors.items()}
    Checkpoint(checkpoint.config, changed, checkpoint.tokenizer, {}).save(mine)
    set_params(place, {"train": {"epochs": 1}})
    assert "since the last run the base weights changed" in stages(place, "train")
