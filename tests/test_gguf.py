"""GGUF files: read as their numbers say, exported and read again, or refused."""

import random
import struct
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.export.gguf_file import write_gguf
from stages.lm.inference.loading import LoadedModel
from stages.lm.model.checkpoint import build_model
from stages.lm.pretrained.gguf_reader import read_gguf
from stages.lm.pretrained.gguf_weights import NUMBERS, read_tensor
from stages.lm.pretrained.model import PretrainedModel

YARN = {
    **{"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 16},
    **{"rope_high": 32.0, "rope_attention": 1.25},
}
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_context": 8192}
SHAPES = {
    "llama": {"arch": "llama", "kv_heads": 2, "tie_embeddings": True, "rope_base": 1e5},
    "llama 3": {"arch": "llama", "head_size": 16} | LLAMA3,
    "mistral": {"arch": "llama", "sliding_window": 5},
    "qwen2": {"arch": "qwen2", "kv_heads": 1} | YARN,
    "qwen3": {"arch": "qwen3", "head_size": 16, "rope_scaling": "linear", "rope_factor": 2.0},
    "gpt2": {"arch": "gpt2", "tie_embeddings": True},
    "gemma3": {"arch": "gemma3", "layers": 6, "kv_heads": 1, "sliding_window": 5},
    "smollm3": {"arch": "smollm3", "layers": 4, "kv_heads": 2},
    "olmo2": {"arch": "olmo2"},
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """`data/base/`, elsewhere."""
    monkeypatch.setattr(paths, "BASE", tmp_path)
    return tmp_path


@pytest.fixture
def write(make_model, tokenizer, folder):
    """A function from a shape to a model of ours in `theirs.gguf`."""

    def write(shape="llama", kind="f32", **fields):
        model = make_model(**SHAPES[shape] | {"vocab_size": tokenizer.vocab_size} | fields)
        (folder / "theirs.gguf").unlink(missing_ok=True)
        loaded = LoadedModel(model.config, lambda: model, tokenizer, "float32", {}, 0)
        write_gguf(loaded, folder / "theirs.gguf", kind)
        return model

    return write


def read(context=16):
    base = PretrainedModel.open("theirs.gguf")
    config = base.config_for(base.config.vocab_size, context, dropout=0.0)
    return build_model(config, base.state_dict(config))


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("shape", SHAPES)
def test_what_we_export_comes_back_bit_for_bit(write, shape):
    model, again = write(shape), read()
    assert replace(again.config, rope_attention=1.0) == replace(model.config, rope_attention=1.0)
    assert again.config.rope_attention == pytest.approx(model.config.rope_attention)
    expected = model.state_dict()
    padding = {"token_embedding.weight", "head.weight"}  # rows beyond the vocabulary
    for name, tensor in again.state_dict().items():
        rows = model.config.vocab_size if name in padding else None
        assert torch.equal(tensor[:rows], expected[name][:rows]), name


def test_the_rows_of_queries_and_keys_are_neighbours_in_llama_s_files(write):
    """As llama.cpp's converter permutes them: rotated pairs are rows 2 i and 2 i + 1."""
    model = write("llama")
    stored = read_tensor(read_gguf(paths.BASE / "theirs.gguf"), "blk.0.attn_k.weight")
    key = model.blocks[0].attention.qkv.weight[32:48]  # two heads of eight rows
    order = [head * 8 + pair + half for head in (0, 1) for pair in range(4) for half in (0, 4)]
    assert torch.equal(stored, key[order])


@pytest.mark.parametrize("kind", sorted(NUMBERS, key=lambda kind: kind.name), ids=lambda k: k.name)
def test_every_number_format_is_decoded_as_gguf_does(kind, folder):
    numbers = np.random.default_rng(1).normal(size=(3, 512)).astype(np.float32)
    try:
        codes = quantize(numbers, kind)
    except NotImplementedError:  # k-quants are made by llama.cpp only
        per_block, size = gguf.GGML_QUANT_SIZES[kind]
        codes = np.random.default_rng(1).integers(0, 60, (3, 512 // per_block * size), np.uint8)
    writer = gguf.GGUFWriter(folder / "one.gguf", "llama")
    writer.add_tensor("first.weight", np.ones(5, np.float32))
    writer.add_tensor("x.weight", codes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_tensor(read_gguf(folder / "one.gguf"), "x.weight")
    assert found.dtype == torch.float32 and found.shape == (3, 512)
    assert np.array_equal(found.numpy(), dequantize(codes, kind))


def test_eight_bits_are_read_as_what_they_stand_for(write):
    model, again = write("llama", "q8_0", width=64), read()
    exact, found = (each.blocks[1].feed_forward.down.weight for each in (model, again))
    assert 0 < (found - exact).abs().max() < exact.abs().max() / 200


METADATA = {
    "family": ("general.architecture", "mamba", "general.architecture is 'mamba', but must be one"),
    "no epsilon": ("llama.attention.layer_norm_rms_epsilon", None, "must be a number"),
    "heads by layer": ("llama.attention.head_count_kv", [2, 1], "equal in all layers"),
    "head size": ("llama.rope.dimension_count", 4, "must be 8, the size of a head"),
    "no heads": ("llama.attention.head_count", 0, "an impossible model"),
    "experts": ("llama.expert_count", 8, "llama.expert_count is 8, but must be 0"),
    "scaling": ("llama.rope.scaling.type", "longrope", "must be none, linear or yarn"),
    "layers": ("llama.block_count", 201, "an impossible model"),
    "width": ("llama.embedding_length", 64, "theirs.gguf"),
}


@pytest.mark.parametrize("case", METADATA)
def test_metadata_of_what_our_graph_cannot_express_is_refused(case, write, monkeypatch):
    write()
    key, value, words = METADATA[case]
    file = read_gguf(paths.BASE / "theirs.gguf")
    changed = {name: v for name, v in (file.metadata | {key: value}).items() if v is not None}
    monkeypatch.setattr(
        "stages.lm.pretrained.model.read_gguf", lambda path: replace(file, metadata=changed)
    )
    message = refusal(read)
    assert words in message and "theirs.gguf" in message and "init_from" in message, message


def test_other_number_formats_and_other_frequencies_are_refused(write, monkeypatch):
    write("llama 3", head_size=16)
    file = read_gguf(paths.BASE / "theirs.gguf")
    odd = replace(file.tensors["output_norm.weight"], kind=int(Kind.IQ2_XXS))
    odd = replace(file, tensors=file.tensors | {"output_norm.weight": odd})
    assert "output_norm.weight is stored as IQ2_XXS" in refusal(
        read_tensor, odd, "output_norm.weight"
    )
    other = {"rope_freqs.weight": file.tensors["blk.0.attn_norm.weight"]}
    odd = replace(file, tensors=file.tensors | other)
    monkeypatch.setattr("stages.lm.pretrained.model.read_gguf", lambda path: odd)
    assert "are not those of Llama 3" in refusal(read)
    none = replace(file.tensors["rope_freqs.weight"], shape=(0,))
    odd = replace(file, tensors=file.tensors | {"rope_freqs.weight": none})
    assert "are not those of Llama 3" in refusal(read)


def test_a_damaged_file_is_refused(write):
    """Whatever is cut off or changed: it is read or refused, soon and in little memory."""
    write()
    path = paths.BASE / "theirs.gguf"
    whole = path.read_bytes()
    draw = random.Random(1)
    header = whole.index(b"blk.0.attn_norm")
    variants = [whole[: draw.randrange(len(whole))] for _ in range(15)]
    for _ in range(60):
        data = bytearray(whole)
        place = draw.choice(
            [draw.randrange(400), draw.randrange(header), draw.randrange(len(data))]
        )
        size, number = draw.choice([(1, "B"), (4, "I"), (8, "Q")])
        value = draw.choice([0, 1, draw.randrange(256**size), 256**size - 1, 2**31 % 256**size])
        data[place : place + size] = struct.pack("<" + number, value)
        variants.append(bytes(data[: len(whole)]))
    refused = 0
    for data in variants:
        path.write_bytes(data)
        try:
            list(PretrainedModel.open("theirs.gguf").tensors())
        except UserError as error:
            assert "theirs.gguf" in str(error) and len(str(error)) < 1000
            refused += 1
    assert refused > 30
