"""Other programs read what we export: the same logits, the same token ids."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiktoken_ext.openai_public
import torch
from gguf.quants import quantize
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages import export
from stages.lm.core.errors import UserError
from stages.lm.export import huggingface
from stages.lm.export.gguf_file import write_gguf
from stages.lm.export.huggingface import write_huggingface
from stages.lm.export.pattern_names import pattern_name
from stages.lm.inference.generation import chat_ids
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.byte_level import byte_characters, printed_tokens
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, train_bpe

SHAPES = {
    "qwen3": {"arch": "qwen3"},
    "qwen3 grouped": {"arch": "qwen3", "kv_heads": 2},
    "qwen3 wide heads": {"arch": "qwen3", "head_size": 16, "rope_base": 500_000.0},
    "qwen3 one kv head, tied": {"arch": "qwen3", "kv_heads": 1, "tie_embeddings": True},
    "gpt2": {"arch": "gpt2", "tie_embeddings": True},
    "gpt2 untied": {"arch": "gpt2"},
}
SCALED = {"rope_factor": 4.0, "rope_original_context": 32}
FAMILIES = {
    "llama": {"arch": "llama", "kv_heads": 2, "tie_embeddings": True, "norm_eps": 1e-5},
    "llama 3": {"arch": "llama", "rope_scaling": "llama3", "rope_base": 5e5} | SCALED,
    "mistral": {"arch": "llama", "head_size": 16, "sliding_window": 20},
    "qwen2": {"arch": "qwen2", "kv_heads": 1, "rope_scaling": "yarn", "rope_high": 32.0}
    | {"rope_attention": 1.3}
    | SCALED,
    "qwen3, linear": {"arch": "qwen3", "rope_scaling": "linear", "rope_factor": 2.0},
    "gemma3": {"arch": "gemma3", "layers": 6, "sliding_window": 20, "tie_embeddings": True},
    "smollm3": {"arch": "smollm3", "layers": 4, "kv_heads": 2},
    "olmo2": {"arch": "olmo2", "kv_heads": 2},
}
EACH_SHAPE = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
MIXED = (
    "Hello world, IT'S a don'tcare — 3.14159 and 1234567!\r\n\r\n  if (x):\n\t\treturn  y   \n\n\n"
    "Привет, мир! Ёжик. 我们在这里学习语言模型。日本語のテキスト。"
    "مرحبا بالعالم नमस्ते दुनिया Ελληνικά\n"
    "🙂🙃👨‍👩‍👧 naïve cafe\u0301 ﬁ \u00a0\u2003\u3000 \x00\x01\x1f\x7f\x85\u2028\ufeff"
    "\ufffd ÿ 'Ll 'VE I'm\n"
    "HTTPServer camelCase snake_case a/b//c\\d {[<>]} ... ???!!!  trailing   "
)


def of(model, tokenizer, scheme="float32", provenance=None):
    return LoadedModel(model.config, lambda: model, tokenizer, scheme, provenance or {}, 0)


@pytest.fixture
def make_loaded(make_model, tokenizer):
    def make(shape):
        fields = {"vocab_size": tokenizer.vocab_size, "context": 48} | shape
        return of(make_model(**fields), tokenizer)

    return make


@pytest.fixture(scope="module")
def tokenizers(text):
    return {name: train_bpe(iter([text, MIXED * 3]), 500, name) for name in PATTERNS}


@pytest.fixture
def model_file(tmp_path, checkpoint):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path)
    return path


# Hugging Face -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES | FAMILIES)
def test_transformers_gives_the_same_logits(make_loaded, kind, tmp_path):
    loaded = make_loaded((SHAPES | FAMILIES)[kind])
    write_huggingface(loaded, tmp_path)
    model, told = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    family = kind.split(" ")[0].removesuffix(",")
    assert model.config.model_type.removesuffix("_text") == family
    size = loaded.model.config.vocab_size
    assert model.get_input_embeddings().weight.shape[0] == size < loaded.model.config.padded_vocab
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(size, (3, loaded.model.config.context), generator=generator)
    with torch.inference_mode():
        theirs = model(tokens).logits
    assert theirs.dtype == torch.float32
    assert (theirs - loaded.model(tokens)).abs().max() < 1e-5


def test_transformers_generates_with_what_is_written(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["gpt2"])
    write_huggingface(loaded, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = AutoTokenizer.from_pretrained(tmp_path)("The", return_tensors="pt")
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0].tolist()
    ids = loaded.tokenizer.encode(b"The")
    while len(ids) < len(written):
        ids.append(int(loaded.model(torch.tensor([ids]))[0, -1].argmax()))
    assert written == ids
    assert model.generation_config.top_p == 0.95


@pytest.mark.parametrize("name", PATTERNS)
def test_transformers_cuts_text_into_the_same_tokens(tokenizers, make_model, name, tmp_path):
    tokenizer = tokenizers[name]
    for arch in ("qwen3", "gpt2"):
        model = make_model(arch, vocab_size=tokenizer.vocab_size)
        write_huggingface(of(model, tokenizer), tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        ids = theirs(MIXED)["input_ids"]
        assert ids == tokenizer.encode(MIXED.encode())
        assert theirs.decode(ids) == MIXED
        assert len(theirs) == tokenizer.vocab_size


def test_transformers_makes_a_token_of_a_word_that_no_merges_lead_to(make_model, tmp_path):
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"word": 256}
    model = make_model(vocab_size=257)
    write_huggingface(of(model, BytePairTokenizer(ranks, PATTERNS["gpt-2"], "own")), tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("word\n")["input_ids"] == [256, ord("\n")]


def test_the_card_tells_the_training_and_the_scheme(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["qwen3"])
    provenance = {
        "data": {"splits": {"train": {"bytes": 1234567, "tokens": 4321}}},
        "metrics": {"best_epoch": 7, "best_val_loss": 1.25},
        "init_from": "owner/theirs",
    }
    told = of(loaded.model, loaded.tokenizer, "int8", provenance)
    write_huggingface(told, tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "1,234,567 bytes (4,321 tokens), 7 epochs; 1.2500 nats" in card
    assert "quantized (int8)" in card and "base_model: owner/theirs\n" in card
    assert "weights of owner/theirs, whose licence" in card
    write_huggingface(loaded, tmp_path)
    card = (tmp_path / "README.md").read_text("utf-8")
    assert "not recorded" in card and "quantized" not in card and "licence" not in card


# Tokens as text -----------------------------------------------------------------------------------


def test_every_byte_has_its_own_character_and_a_space_is_gpt2s():
    characters = byte_characters()
    assert sorted(characters.values()) == list(range(256))
    assert printed_tokens([b" a\n", b"\xff"]) == ["\u0120a\u010a", "ÿ"]


def test_a_published_vocabulary_is_known_by_its_name(tokenizer, text):
    pattern = tiktoken_ext.openai_public.r50k_pat_str
    published = BytePairTokenizer(tokenizer.ranks, pattern, "gpt2")
    assert pattern_name(published) == "gpt-2"
    for sample in (text, MIXED):
        assert published.encode(sample.encode()) == tokenizer.encode(sample.encode())


def test_a_pattern_without_a_name_is_refused_in_one_sentence(tokenizer):
    with pytest.raises(UserError, match=r"tokenize\.pattern.*gpt-4o"):
        pattern_name(BytePairTokenizer(tokenizer.ranks, r"\p{L}+|.", "own"))


# GGUF ---------------------------------------------------------------------------------------------


def read(path):
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def written(loaded, tmp_path, kind):
    path = tmp_path / f"{kind}.gguf"
    write_gguf(loaded, path, kind)
    return read(path)


@EACH_SHAPE
def test_gguf_holds_every_tensor_bit_for_bit(make_loaded, shape, tmp_path):
    loaded = make_loaded(shape)
    _, tensors = written(loaded, tmp_path, "f32")
    ours = loaded.model.state_dict()
    size, config = loaded.tokenizer.vocab_size, loaded.model.config

    def same(name, expected):
        held = tensors.pop(name)
        assert held.tensor_type == gguf.GGMLQuantizationType.F32
        assert torch.equal(torch.from_numpy(held.data.copy()), expected), name

    same("token_embd.weight", ours["token_embedding.weight"][:size])
    if not config.tie_embeddings:
        same("output.weight", ours["head.weight"][:size])
    if config.arch == "gpt2":
        same("position_embd.weight", ours["position_embedding.weight"])
        same("output_norm.bias", ours["final_norm.bias"])
    same("output_norm.weight", ours["final_norm.weight"])
    for layer in range(config.layers):
        here, there = f"blocks.{layer}.", f"blk.{layer}."
        kinds = ["weight"] if config.arch == "qwen3" else ["weight", "bias"]
        for kind in kinds:
            same(f"{there}attn_norm.{kind}", ours[f"{here}attention_norm.{kind}"])
            same(f"{there}ffn_norm.{kind}", ours[f"{here}feed_forward_norm.{kind}"])
            same(f"{there}attn_output.{kind}", ours[f"{here}attention.out.{kind}"])
            same(f"{there}ffn_down.{kind}", ours[f"{here}feed_forward.down.{kind}"])
            if config.arch == "gpt2":
                same(f"{there}attn_qkv.{kind}", ours[f"{here}attention.qkv.{kind}"])
                same(f"{there}ffn_up.{kind}", ours[f"{here}feed_forward.up.{kind}"])
        if config.arch == "qwen3":
            rows = [config.heads, config.kv_heads, config.kv_heads]
            parts = ours[f"{here}attention.qkv.weight"].split([n * config.head_size for n in rows])
            for name, part in zip("qkv", parts, strict=True):
                same(f"{there}attn_{name}.weight", part)
            same(f"{there}attn_q_norm.weight", ours[f"{here}attention.query_norm.weight"])
            same(f"{there}attn_k_norm.weight", ours[f"{here}attention.key_norm.weight"])
            gate, up = ours[f"{here}feed_forward.gate_up.weight"].chunk(2)
            same(f"{there}ffn_gate.weight", gate)
            same(f"{there}ffn_up.weight", up)
    assert not tensors


def test_gguf_tells_the_shape(make_loaded, tmp_path):
    fields, _ = written(make_loaded(SHAPES["qwen3 wide heads"]), tmp_path, "f32")
    told = {k.removeprefix("qwen3."): v for k, v in fields.items() if k.startswith("qwen3.")}
    assert fields["general.architecture"] == "qwen3"
    assert told == {
        "context_length": 48,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 48,
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "attention.key_length": 16,
        "attention.value_length": 16,
        "attention.layer_norm_rms_epsilon": pytest.approx(1e-6),
        "rope.dimension_count": 16,
        "rope.freq_base": 500_000,
        "vocab_size": 300,
    }
    fields, _ = written(make_loaded(SHAPES["gpt2"]), tmp_path, "q8_0")
    assert fields["general.architecture"] == "gpt2"
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    assert fields["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0


def test_gguf_tells_the_tokenizer(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["qwen3"])
    fields, _ = written(loaded, tmp_path, "f32")
    told = {k.removeprefix("tokenizer.ggml."): v for k, v in fields.items() if "tokenizer" in k}
    characters = byte_characters()
    tokens = [bytes(characters[char] for char in token) for token in told["tokens"]]
    assert (told["model"], told["pre"]) == ("gpt2", "gpt-2")
    assert tokens == loaded.tokenizer.tokens
    merged = ["".join(merge.split(" ")) for merge in told["merges"]]
    assert merged == told["tokens"][256:]
    assert tokens[told["eos_token_id"]] == tokens[told["bos_token_id"]] == b"\xff"
    assert not told["add_bos_token"] and not told["add_eos_token"]


def test_the_folder_of_a_model_of_records_tells_where_answers_end(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["qwen3"])
    answering = replace(
        loaded,
        provenance={"data": {"records": {"train": 1}}},
        tokenizer=loaded.tokenizer.for_conversations(),
    )
    ends = []
    for name, each in {"text": loaded, "records": answering}.items():
        (tmp_path / name).mkdir()
        write_huggingface(each, tmp_path / name)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        ends.append((model.config.eos_token_id, model.generation_config.eos_token_id))
    end = loaded.tokenizer.ranks[b"\xff"]
    assert ends == [(None, None), (end, end)]
    told = (tmp_path / "records" / "README.md").read_text("utf-8")
    assert "apply_chat_template" in told
    theirs = AutoTokenizer.from_pretrained(tmp_path / "records")
    messages = [("user", "the <|end|> dog"), ("assistant", "mind"), ("user", "lazy")]
    asked = [{"role": role, "content": content} for role, content in messages]
    given = theirs.apply_chat_template(asked[2:], add_generation_prompt=True)["input_ids"]
    assert given == chat_ids(answering, messages[2:])
    assert (
        theirs.decode([end]) == "<|end|>" and theirs.decode([end], skip_special_tokens=True) == ""
    )
    spelled = [
        byte for token in chat_ids(answering, messages) for byte in answering.tokenizer.shown(token)
    ]
    assert bytes(spelled).decode() == (
        "the <|end|> dog<|assistant|>mind<|end|><|user|>lazy<|assistant|>"
    )
    assert chat_ids(answering, messages).count(end) == 1


def test_a_model_of_documents_tells_where_texts_begin_and_end(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["qwen3"])
    own, data = loaded.tokenizer.for_documents(), {"documents": {"train": 1}}
    loaded = replace(loaded, tokenizer=own, provenance={"data": data})
    end = own.named("<|end|>")
    (tmp_path / "folder").mkdir()
    write_huggingface(loaded, tmp_path / "folder")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == end
    ids = AutoTokenizer.from_pretrained(tmp_path / "folder")("a text")["input_ids"]
    assert ids == loaded.tokenizer.encode(b"\xffa text") and ids[0] == end
    assert "token ids are the same" in export.compare(loaded, tmp_path / "folder", "a text")
    fields, _ = written(loaded, tmp_path, "f32")
    told = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    assert told["eos_token_id"] == told["bos_token_id"] == end
    assert told["add_bos_token"] and not told["add_eos_token"]


@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
@pytest.mark.parametrize("tied", [True, False])
def test_quantized_tensors_are_those_of_the_reference(make_loaded, kind, tied, tmp_path):
    shape = {"arch": "qwen3", "ff_width": 64, "tie_embeddings": tied}
    loaded = make_loaded(shape)
    _, exact = written(loaded, tmp_path, "f32")
    _, tensors = written(loaded, tmp_path, kind)
    assert tensors.keys() == exact.keys()
    head = "token_embd.weight" if tied else "output.weight"
    for name, tensor in tensors.items():
        expected = gguf.GGMLQuantizationType[kind.upper()]
        if "norm" in name:
            expected = gguf.GGMLQuantizationType.F32
        elif name == head:
            expected = gguf.GGMLQuantizationType.Q8_0
        assert tensor.tensor_type == expected, name
        assert np.array_equal(tensor.data, quantize(exact[name].data, expected)), name


def test_f16_rounds_to_the_nearest_and_what_blocks_do_not_divide_is_f16(make_loaded, tmp_path):
    loaded = make_loaded(SHAPES["gpt2"])
    _, exact = written(loaded, tmp_path, "f32")
    for kind in ("f16", "q4_0"):
        _, tensors = written(loaded, tmp_path, kind)
        for name, tensor in tensors.items():
            if name in ("position_embd.weight",) or exact[name].data.ndim == 1:
                assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
            elif kind == "f16" or exact[name].data.shape[1] % 32:
                assert np.array_equal(tensor.data, exact[name].data.astype(np.float16)), name


# The command --------------------------------------------------------------------------------------


def test_the_command_writes_all_it_is_asked_for_and_compares(model_file, tmp_path, capsys):
    folder = tmp_path / "new" / "out"
    formats = ["huggingface", "gguf-f32", "gguf-f16", "gguf-q8_0", "gguf-q4_0"]
    export.main([str(folder), "--model", str(model_file), "--format", *formats])
    printed = capsys.readouterr().out
    assert "token ids are the same" in printed
    apart = float(printed.split("differ by at most ")[1].split(" ")[0])
    assert apart < 1e-5
    names = {"model.safetensors", "config.json", "generation_config.json", "README.md"}
    names |= {"tokenizer.json", "tokenizer_config.json"}
    names |= {f"model-{kind}.gguf" for kind in ("f32", "f16", "q8_0", "q4_0")} | {"Modelfile"}
    assert {file.name for file in folder.iterdir()} == names
    assert [file.name for file in folder.parent.iterdir()] == ["out"]


def test_where_llama_cpp_cuts_otherwise_is_said(checkpoint, tmp_path, capsys):
    tokenizer = checkpoint.tokenizer | {"pattern": PATTERNS["gpt-4o"]}
    path = tmp_path / "model.pt"
    Checkpoint(checkpoint.config, checkpoint.tensors, tokenizer, {}).save(path)
    for form, told in (("huggingface", False), ("gguf-f16", True)):
        export.main([str(tmp_path / form), "--model", str(path), "--format", form])
        assert ("combining marks" in capsys.readouterr().out) == told


def test_a_quantized_model_is_exported_as_its_codes_stand_for(checkpoint, tmp_path):
    path = tmp_path / "quantized.pt"
    quantize_checkpoint(checkpoint, "int8").save(path)
    export.main([str(tmp_path / "out"), "--model", str(path)])
    tokens = torch.arange(16)[None]
    with torch.inference_mode():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    assert (theirs - load_model(path).model(tokens)).abs().max() < 1e-5


def test_the_same_model_gives_the_same_bytes(model_file, tmp_path):
    for name in ("a", "b"):
        export.main([str(tmp_path / name), "--model", str(model_file)])
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_an_empty_folder_is_taken_and_a_full_one_refused(model_file, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    export.main([str(folder), "--model", str(model_file), "--format", "gguf-f32"])
    before = (folder / "model-f32.gguf").read_bytes()
    with pytest.raises(UserError, match="is not empty"):
        export.main([str(folder), "--model", str(model_file)])
    assert {file.name for file in folder.iterdir()} == {"model-f32.gguf", "Modelfile"}
    assert (folder / "model-f32.gguf").read_bytes() == before


def test_a_failure_leaves_nothing(model_file, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_gguf", full)
    with pytest.raises(UserError, match="No space left"):
        export.main([str(tmp_path / "out"), "--model", str(model_file)])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("function", ["save_file", "write_text", "write_json", "write_gguf"])
@pytest.mark.parametrize("kind", ["full", "gone"])
def test_a_disk_that_fails_at_any_file_is_a_sentence(
    model_file, tmp_path, monkeypatch, function, kind
):
    module = export if function == "write_gguf" else huggingface
    real = getattr(module, function)

    def fail(*arguments):
        if kind == "gone":
            monkeypatch.setattr(module, function, real)
            shutil.rmtree(next(tmp_path.glob(".out.*.tmp")))
            real(*arguments)
        elif function == "save_file":
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        else:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, function, fail)
    with pytest.raises(UserError, match=r"out could not be written \(|was not kept"):
        export.main([str(tmp_path / "out"), "--model", str(model_file)])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_folders_of_the_user_are_left_alone(model_file, tmp_path):
    mine = [tmp_path / ".out.tmp" / "notes", tmp_path / ".out.12345678.tmp" / "notes"]
    for path in mine:
        path.parent.mkdir()
        path.write_text("mine")
    export.main([str(tmp_path / "out"), "--model", str(model_file), "--format", "gguf-f32"])
    assert all(path.read_text() == "mine" for path in mine)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("target", ["empty", "nowhere", "full"])
def test_a_link_as_the_folder_is_followed_or_refused(model_file, tmp_path, target):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / target)
    arguments = [str(tmp_path / "link"), "--model", str(model_file), "--format", "gguf-f32"]
    if target == "empty":
        export.main(arguments)
        assert (tmp_path / "empty" / "model-f32.gguf").exists()
    else:
        with pytest.raises(UserError, match=r"link to nothing|is not empty"):
            export.main(arguments)
        assert not any((tmp_path / "empty").iterdir()) and not (tmp_path / "nowhere").exists()
    assert (tmp_path / "link").is_symlink()


def test_what_transformers_reads_otherwise_is_not_kept(model_file, tmp_path, monkeypatch):
    def wrong(loaded: LoadedModel, folder: Path) -> None:
        write_huggingface(loaded, folder)
        config = json.loads((folder / "config.json").read_text())
        config["rms_norm_eps"] = 0.1
        (folder / "config.json").write_text(json.dumps(config))

    monkeypatch.setattr(export, "write_huggingface", wrong)
    with pytest.raises(UserError, match="was not kept"):
        export.main([str(tmp_path / "out"), "--model", str(model_file)])
    assert not (tmp_path / "out").exists()


def test_without_transformers_it_is_written_all_the_same(model_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _: None)
    export.main([str(tmp_path / "out"), "--model", str(model_file)])
    assert "not installed" in capsys.readouterr().out
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "arguments",
    [["out", "--format", "onnx"], ["out", "--colour"], [], ["out", "--model", "models/none.pt"]],
)
def test_wrong_arguments_are_refused_in_one_sentence(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        export.main(arguments)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())


def test_a_model_whose_pattern_has_no_name_leaves_nothing(checkpoint, tmp_path):
    tokenizer = checkpoint.tokenizer | {"pattern": r"\p{L}+|\P{L}"}
    path = tmp_path / "own.pt"
    Checkpoint(checkpoint.config, checkpoint.tensors, tokenizer, {}).save(path)
    with pytest.raises(UserError, match=r"tokenize\.pattern"):
        export.main([str(tmp_path / "out"), "--model", str(path)])
    assert [file.name for file in tmp_path.iterdir()] == ["own.pt"]
