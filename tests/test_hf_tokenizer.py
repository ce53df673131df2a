"""Published vocabularies give the ids of `tokenizers`, make no control token, and cannot hang."""

import json
import random
from base64 import b64encode
from itertools import chain, pairwise

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer, UnigramTrainer

from stages.lm.core.errors import UserError
from stages.lm.data.meta import TokenizerMeta
from stages.lm.data.splits import read_chunks
from stages.lm.export.gguf_file import add_tokenizer
from stages.lm.pretrained.gguf_reader import read_gguf
from stages.lm.pretrained.gguf_tokenizer import chat_in, tokenizer_document
from stages.lm.text import hf_tokenizer, tokenizer_json
from stages.lm.text.chat import Chat
from stages.lm.text.hf_tokenizer import HFTokenizer
from stages.lm.text.parallel import encode_chunks
from stages.lm.text.stored_tokenizer import load_tokenizer
from stages.lm.text.tokenizer import PATTERNS
from stages.lm.text.tokenizer_json import check_pattern

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
MIXED = (
    "Hello world, IT'S a don'tcare — 3.14159 and 1234567!\r\n\r\n  if (x):\n\t\treturn  y   \n\n\n"
    "Привет, мир! Ёжик. 我们在这里学习语言模型。 नमस्ते दुनिया مرحبا\n<b>bold</b>\n"
    "🙂👨‍👩‍👧 naïve \x00\x1f\u2028 'Ll ﬁ Å  </s><s>x<|im_end|>"
)
SPACES = pre_tokenizers.Split("▁", "merged_with_next")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(*cuts, normalizer=None):
    tokenizer = Tokenizer(models.BPE())
    parts = [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cuts)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.normalizer, tokenizer.decoder = normalizer, decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    return tokenizer, trainer


def sentencepiece(prefix):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", "▁")
    first = [normalizers.Prepend("▁")] if prefix == "prepend" else []
    tokenizer.normalizer = normalizers.Sequence([*first, replace])
    if prefix == "metaspace":
        tokenizer.normalizer = None
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=500, special_tokens=[*SPECIAL, *BYTES], limit_alphabet=40, show_progress=False,
        max_token_length=9,
    )  # fmt: skip
    return tokenizer, trainer


def unigram(_=None):
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = UnigramTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, *BYTES], unk_token="<unk>", show_progress=False
    )
    return tokenizer, trainer


KINDS = {
    "gpt-2": lambda: byte_level(),
    "llama 3": lambda: byte_level(pre_tokenizers.Split(Regex(PATTERNS["llama-bpe"]), "isolated")),
    "smollm": lambda: byte_level(
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Split(Regex(PATTERNS["gpt-2"]), "isolated"),
    ),
    "own pattern": lambda: byte_level(
        pre_tokenizers.Split(Regex(r"\p{L}+|\d{1,2}| ?[^\s\w]+|\s+"), "isolated"),
        normalizer=normalizers.NFC(),
    ),
    "llama 2": lambda: sentencepiece("prepend"),
    "gemma": lambda: sentencepiece(""),
    "mistral": lambda: sentencepiece("metaspace"),
    "unigram": unigram,
}
LOSSLESS = ("gpt-2", "llama 3", "smollm", "gemma")


@pytest.fixture(scope="module")
def trained(text):
    made = {}
    for name, make in KINDS.items():
        tokenizer, trainer = make()
        if name in ("llama 2", "gemma", "mistral"):  # SentencePiece learns from words
            cuts, tokenizer.pre_tokenizer = tokenizer.pre_tokenizer, SPACES
            tokenizer.train_from_iterator([text.replace("\n", " ").replace(" ", "▁")], trainer)
            tokenizer.pre_tokenizer = cuts or pre_tokenizers.Sequence([])
        else:
            tokenizer.train_from_iterator([text, MIXED[:-30]] * 3, trainer)
        document = json.loads(tokenizer.to_str())
        # Trainers call everything special, the bytes too.
        document["added_tokens"] = [t for t in document["added_tokens"] if t["content"] in SPECIAL]
        if name == "unigram":
            document["model"]["byte_fallback"] = True
        made[name] = Tokenizer.from_str(json.dumps(document))
    return made


def ours(theirs, **chat):
    return HFTokenizer(theirs.to_str(), "theirs", **chat)


EACH = pytest.mark.parametrize("kind", KINDS)


@EACH
def test_ids_are_those_of_tokenizers_and_no_text_makes_a_control_token(kind, trained, text):
    theirs, found = trained[kind], ours(trained[kind])
    assert list(found.control.values()) == SPECIAL
    plain = Tokenizer.from_str(theirs.to_str())
    plain.encode_special_tokens = True
    pieces = [text, MIXED, *MIXED.splitlines(), "", " ", "\n", "a", " a  b ", "\u200b我"]
    for piece in pieces:
        ids = found.encode(piece.encode())
        assert found.control.keys().isdisjoint(ids)
        expected = plain.encode(piece, add_special_tokens=False).ids
        if kind != "unigram" or "<" not in piece:  # whose pieces have the names of control tokens
            assert ids == expected
        if kind in LOSSLESS:
            assert found.decode(ids).decode() == piece
        elif kind not in ("own pattern", "unigram"):
            assert found.decode(ids).decode().lstrip() == piece.lstrip()
    assert "</s>" in found.decode(found.encode(b"x</s>")).decode()


@EACH
def test_names_in_a_rendered_text_are_control_tokens(kind, trained):
    theirs, found = trained[kind], ours(trained[kind])
    said = "<|im_start|>user\nthe lazy dog<|im_end|>\n<s>fox 12"
    assert found.encode_rendered([said]) == theirs.encode(said, add_special_tokens=False).ids
    ids = found.encode_rendered(["<s>a <", "/s>"])
    assert [token for token in ids if token in found.control] == [found.named("<s>")]


@pytest.mark.parametrize("kind", LOSSLESS)
@given(data=st.binary(max_size=20))
def test_any_bytes_come_back(kind, trained, data):
    found = ours(trained[kind]) if kind not in MADE else MADE[kind]
    MADE[kind] = found
    assert found.decode(found.encode(data)) == data


MADE: dict[str, HFTokenizer] = {}


@EACH
def test_chunks_give_the_ids_of_the_whole(kind, trained, text, tmp_path, monkeypatch):
    path = tmp_path / "text"
    path.write_bytes(text.encode())
    monkeypatch.setattr("stages.lm.data.splits.CHUNK_BYTES", 200)
    found, chunks = ours(trained[kind]), list(read_chunks(path, range(len(text.encode()))))
    ids = [found.encode(chunk, follows=n > 0) for n, chunk in enumerate(chunks)]
    assert len(chunks) > 5 and list(chain(*ids)) == found.encode(text.encode())


@EACH
def test_merges_give_the_bytes_of_each_token(kind, trained):
    found = ours(trained[kind])
    pairs = [(own, pair) for own, pair in enumerate(found.merges()) if pair != (own, own)]
    assert all(found.tokens[own] == found.decode(pair) for own, pair in pairs)
    assert bool(pairs) == (kind != "unigram")


@pytest.mark.parametrize("kind", ["smollm", "llama 2", "unigram"])
def test_a_model_file_holds_it_whole(kind, trained):
    found = ours(trained[kind])
    meta = TokenizerMeta(found.name, found.pattern, "{{ 1 }}", "<s>", "</s>")
    stored = meta.stored(found.to_text())
    again = load_tokenizer(stored)
    assert again.encode(MIXED.encode()) == found.encode(MIXED.encode())
    assert (again.tokens, again.control) == (found.tokens, found.control)
    assert (again.chat.template, again.chat.eos_token) == ("{{ 1 }}", "</s>")
    assert all(type(part) is str for part in stored.values())


def test_a_forged_model_file_does_not_expand_without_end(trained, monkeypatch):
    stored = TokenizerMeta("x", "").stored(" " * 1000)
    monkeypatch.setattr("stages.lm.text.stored_tokenizer.MAX_TEXT", 999)
    with pytest.raises(ValueError, match="more than 999 bytes"):
        load_tokenizer(stored)
    for vocabulary in ("", "!", "QUJD"):
        with pytest.raises(ValueError):
            load_tokenizer(stored | {"vocabulary": vocabulary})


def test_what_has_no_token_is_the_replacement_character(trained):
    document = json.loads(trained["mistral"].to_str())
    document["model"]["byte_fallback"] = False
    found = HFTokenizer(json.dumps(document), "x")
    assert "<unk>" not in found.control.values()
    assert found.decode(found.encode("aʘ".encode())).decode() == " a\ufffd"


# What is refused ----------------------------------------------------------------------------------

OTHERS = [
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",  # GPT-4
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",  # DeepSeek V3
    " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+",  # BLOOM
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
]


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), *OTHERS])
def test_published_patterns_are_taken(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *[
            "(a+)+b",
            "(a|a)*",
            r"(.*)*\1x|\s",
            "(?=(a+)+b)c|.",
            "(",
            "a*a*b",
            "a*a*a*",
            "^a*",
            "(a*)?",
        ],
        *["^a*", "(a*)?", "a{9}{9}{9}", "(?:aa?){9}", "(?:(?:a{9}){9}){9}", "(?<=a)b*"],
        *["a" * 3000, "[^b]*[^b]*b"],
    ],
)
def test_patterns_that_may_take_years_are_refused(pattern):
    with pytest.raises(ValueError, match="take years"):
        check_pattern(pattern)


FORGED = {
    "pattern": ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+b"}}}, "take years"),
    "long": ({"normalizer": {"type": "Prepend", "prepend": "x" * 999}}, "puts 999 characters"),
    "unknown": ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "pre_tokenizer is 'Bert"),
    "decoder": ({"decoder": None}, "decoder does not say"),
    "nested": ({"decoder": {"type": "Sequence", "decoders": [{"type": "Sequence"}]}}, "decoder is"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_document_is_refused(case, trained):
    change, words = FORGED[case]
    document = json.loads(trained["gpt-2"].to_str()) | change
    with pytest.raises(ValueError, match=words):
        HFTokenizer(json.dumps(document), "x")


def test_ids_far_beyond_the_number_of_tokens_are_refused(trained, monkeypatch):
    document = json.loads(trained["gpt-2"].to_str())
    document["model"]["vocab"]["z" * 20] = 1 << 30
    with pytest.raises(ValueError, match="ids up to 1,073,741,824"):
        HFTokenizer(json.dumps(document), "x")
    monkeypatch.setattr(hf_tokenizer, "MAX_TEXT", 10)
    with pytest.raises(ValueError, match="more than 10"):
        HFTokenizer(json.dumps(document), "x")
    assert tokenizer_json.MAX_TEXT > 33_000_000


# GGUF ---------------------------------------------------------------------------------------------


def write_gguf(path, theirs, model, **fields):
    document = json.loads(theirs.to_str())
    names = {number: token for token, number in theirs.get_vocab().items()}
    tokens = [names[number] for number in range(len(names))]
    types = [3 if t in SPECIAL else 6 if t in BYTES else 1 for t in tokens]
    types[tokens.index("<|im_start|>")] = 4
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = document["model"]["merges"]
    if model == "gpt2":
        writer.add_token_merges([" ".join(pair) for pair in merges])
        writer.add_tokenizer_pre(fields["pre"])
    else:
        rank = {"".join(pair): -float(n) for n, pair in reversed([*enumerate(merges)])}
        writer.add_token_scores([rank.get(token, -1e6) for token in tokens])
        writer.add_add_space_prefix(fields["prefix"])
    writer.add_bos_token_id(tokens.index("<s>"))
    writer.add_eos_token_id(tokens.index("</s>"))
    writer.add_chat_template("{{ messages }}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("kind", "model", "fields"),
    [
        ("gpt-2", "gpt2", {"pre": "gpt-2"}),
        ("llama 3", "gpt2", {"pre": "llama-bpe"}),
        ("smollm", "gpt2", {"pre": "smollm"}),
        ("llama 2", "llama", {"prefix": True}),
        ("gemma", "llama", {"prefix": False}),
    ],
)
def test_the_tokenizer_of_a_gguf_file_gives_the_same_ids(
    kind, model, fields, trained, text, tmp_path
):
    metadata = read_gguf(write_gguf(tmp_path / "a.gguf", trained[kind], model, **fields)).metadata
    found = HFTokenizer(json.dumps(tokenizer_document(metadata)), "x", chat_in(metadata))
    assert list(found.control.values()) == [name for name in SPECIAL if name != "<|im_start|>"]
    assert (found.chat.bos_token, found.chat.eos_token) == ("<s>", "</s>")
    theirs = ours(trained[kind])
    for piece in [text, *MIXED.splitlines(), "a  b 12"]:
        ids = found.encode(piece.encode())
        if model == "llama":  # equal scores may be cut otherwise
            assert found.decode(ids) == theirs.decode(theirs.encode(piece.encode()))
        else:
            assert ids == theirs.encode(piece.encode())


@pytest.mark.parametrize("kind", ["gpt-2", "llama 3", "smollm", "llama 2", "gemma"])
def test_a_tokenizer_comes_back_from_the_gguf_file_that_is_written_of_it(
    kind, trained, text, tmp_path
):
    trained = Tokenizer.from_str(trained[kind].to_str())
    trained.add_tokens([AddedToken("<tool>", normalized=False)])
    found = ours(trained, chat=Chat(CHATML, "<s>", "<|im_end|>"))
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    begin = found.named("<s>")
    add_tokenizer(writer, found, [begin])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = read_gguf(tmp_path / "a.gguf").metadata
    assert metadata["tokenizer.ggml.eos_token_id"] == found.named("<|im_end|>")
    again = HFTokenizer(json.dumps(tokenizer_document(metadata)), "x", chat_in(metadata))
    assert (again.tokens, again.control, again.chat) == (found.tokens, found.control, found.chat)
    assert again.opening == (begin,)
    for piece in [text, *MIXED.splitlines(), "a <tool>b 12"]:
        ids = again.encode(piece.encode())
        if metadata["tokenizer.ggml.model"] != "llama":
            assert ids == found.encode(piece.encode())
        assert found.decode(ids) == found.decode(found.encode(piece.encode()))


def test_a_unigram_vocabulary_is_written_with_its_scores(trained, tmp_path):
    document = json.loads(trained["unigram"].to_str())

    def written(normalizer):
        found = HFTokenizer(json.dumps(document | {"normalizer": normalizer}), "theirs")
        writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
        add_tokenizer(writer, found, [])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        prefix = "tokenizer.ggml."
        metadata = read_gguf(tmp_path / "a.gguf").metadata
        return {k.removeprefix(prefix): v for k, v in metadata.items() if k.startswith(prefix)}

    charsmap = bytes([4, 0, 0, 0, 0, 0, 0, 0, 0])
    told = written({"type": "Precompiled", "precompiled_charsmap": b64encode(charsmap).decode()})
    assert (told["model"], told["unknown_token_id"], told["add_space_prefix"]) == ("t5", 0, True)
    assert bytes(told["precompiled_charsmap"]) == charsmap
    pieces, scores = zip(*document["model"]["vocab"], strict=True)
    assert tuple(told["tokens"]) == pieces and np.allclose(told["scores"], scores)
    kinds = {token: told["token_type"][pieces.index(token)] for token in ("<s>", "<0x41>", "a")}
    assert kinds == {"<s>": 3, "<0x41>": 6, "a": 1}
    with pytest.raises(UserError, match=r"changes text by NFKC.*format huggingface"):
        written({"type": "NFKC"})


def test_a_damaged_gguf_file_is_refused_in_a_sentence(trained, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", trained["gpt-2"], "gpt2", pre="gpt-2")
    data = path.read_bytes()
    for damage in (
        b"",
        b"GGUF",
        b"GGML" + data[4:],
        data[: len(data) // 2],
        data[:16] + b"\xff" * 99,
    ):
        path.write_bytes(damage)
        with pytest.raises(UserError, match=r"a\.gguf is not readable as GGUF"):
            read_gguf(path)
    for change in ({"tokenizer.ggml.pre": "new"}, {"tokenizer.ggml.model": "bert"}):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"new|bert"):
            tokenizer_document(read_gguf(path).metadata | change)


def test_an_added_token_that_is_not_special_is_text(trained):
    theirs = Tokenizer.from_str(trained["gpt-2"].to_str())
    theirs.add_tokens([AddedToken("<tool>", normalized=False)])
    found = ours(theirs)
    token = theirs.token_to_id("<tool>")
    assert found.encode(b"<tool>") == [token] and found.tokens[token] == b"<tool>"


@EACH
def test_encoding_in_pieces_gives_the_ids_of_the_whole_text(kind, trained, text):
    """A token of several words spans cuts that our own patterns allow."""
    document = json.loads(trained[kind].to_str())
    if kind in ("llama 2", "gemma"):  # "g▁t", as no published vocabulary has
        model, pair = document["model"], ["g", "\u2581"]
        model["vocab"]["".join(pair)] = len(model["vocab"]) + len(document["added_tokens"])
        model["merges"].insert(0, pair)
    found = HFTokenizer(json.dumps(document), "theirs")
    said = text.replace("\r", "")
    whole = found.encode(said.encode())
    draw = random.Random(0)
    for _ in range(20):
        cuts = [0, *sorted(draw.sample(range(1, len(said)), 5)), len(said)]
        chunks = [said[a:b].encode() for a, b in pairwise(cuts)]
        ids = [token for part, _ in encode_chunks(found, chunks, 1) for token in part.tolist()]
        assert ids == whole


@EACH
def test_the_token_that_stands_before_every_text_is_known(kind, trained):
    theirs = Tokenizer.from_str(trained[kind].to_str())
    assert ours(theirs).opening == ()
    first = theirs.token_to_id("<s>")
    theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", first)]
    )
    assert ours(theirs).opening == (first,) == tuple(theirs.encode("").ids)
