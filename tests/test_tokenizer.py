"""Any bytes become ids and come back, by the same ids as everybody else's encoder."""

import base64
import re
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe
from tokenizers import Regex
from tokenizers import Tokenizer as Theirs
from tokenizers.pre_tokenizers import Split
from tokenizing import hard_texts

from stages.lm.core.errors import UserError
from stages.lm.export.huggingface import tokenizer_json
from stages.lm.text import tokenizer as module
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, named_tokenizer, train_bpe

SHARED = Path(__file__).parents[2] / "shared" / "data"
EACH_PATTERN = pytest.mark.parametrize("pattern", PATTERNS)
BYTE_RANKS = {bytes([byte]): byte for byte in range(256)}

PIECES = st.sampled_from(
    [
        *["the", " lazy", "'s", "'LL", "  ", "\n", "\r\n", "\t", " \n\n ", "12345", "...", "!\n/"],
        *["ü", "我们", "e\u0301", "🙂", "\u00a0", "\u2003", "<|endoftext|>", "ǅ", "Ω", "٣", "\x00"],
    ]
)
MIXED = st.lists(
    st.one_of(PIECES.map(str.encode), st.text(max_size=8).map(str.encode), st.binary(max_size=6)),
    max_size=20,
).map(b"".join)


@pytest.fixture(scope="module")
def trained(text):
    """A vocabulary for each pattern."""
    return {name: train_bpe(iter([text]), 400, name) for name in PATTERNS}


@EACH_PATTERN
@settings(max_examples=150)
@given(data=MIXED)
def test_any_bytes_come_back(trained, pattern, data):
    tokenizer = trained[pattern]
    assert tokenizer.decode(tokenizer.encode(data)) == data


@EACH_PATTERN
def test_each_pattern_compiles_where_it_is_used(pattern):
    encoding = tiktoken.Encoding(
        "bytes", pat_str=PATTERNS[pattern], mergeable_ranks=BYTE_RANKS, special_tokens={}
    )
    assert encoding.encode_ordinary("It's 5") == list(b"It's 5")
    pieces = Split(Regex(PATTERNS[pattern]), "isolated").pre_tokenize_str("It's a test.")
    assert [piece for piece, _ in pieces][-1] == "."


@pytest.mark.parametrize(
    ("pattern", "pieces"),
    [
        ("gpt-2", "It|'s| DON|'|T| 12345| HELLOWorld|(|x|)!|\n|/|ab| ف|َ| | y|\r\n\n| z"),
        ("qwen2", "It|'s| DON|'T| |1|2|3|4|5| HELLOWorld|(x|)!\n|/ab| ف|َ| | y|\r\n\n| z"),
        ("llama-bpe", "It|'s| DON|'T| |123|45| HELLOWorld|(x|)!\n|/ab| ف|َ| | y|\r\n\n| z"),
        ("gpt-4o", "It's| DON'T| |123|45| HELLOWorld|(x|)!\n/|ab| فَ| | y|\r\n\n| z"),
    ],
)
def test_each_pattern_cuts_as_its_name_promises(pattern, pieces):
    expected = pieces.split("|")
    cut = Split(Regex(PATTERNS[pattern]), "isolated").pre_tokenize_str("".join(expected))
    assert [piece for piece, _ in cut] == expected


@EACH_PATTERN
@settings(max_examples=60)
@given(pieces=st.lists(st.one_of(PIECES, st.text(st.characters(codec="utf-8"), max_size=8))))
def test_ids_equal_those_of_hugging_face(trained, pattern, others, pieces):
    text = "".join(pieces)
    assert trained[pattern].encode(text.encode()) == others[pattern].encode(text).ids


@pytest.fixture(scope="module")
def others(trained):
    return {name: Theirs.from_str(tokenizer_json(tokenizer)) for name, tokenizer in trained.items()}


def test_training_compresses_the_text_it_saw(trained, text):
    assert len(trained["gpt-2"].encode(text.encode())) < len(text.encode()) / 2


def test_training_twice_gives_the_same_vocabulary(trained, text):
    again = train_bpe(iter([text]), 400, "gpt-2")
    assert again.to_text() == trained["gpt-2"].to_text()


def test_the_vocabulary_is_as_large_as_asked_and_starts_with_the_bytes(trained):
    tokenizer = trained["gpt-2"]
    assert tokenizer.vocab_size == 400
    assert tokenizer.tokens[:256] == [bytes([byte]) for byte in range(256)]


def test_a_short_text_gives_a_smaller_vocabulary():
    assert 256 <= train_bpe(iter(["ab ab"]), 1000, "gpt-2").vocab_size < 265


def test_no_text_at_all_gives_the_bytes():
    assert train_bpe(iter([]), 1000, "gpt-2").tokens == [bytes([byte]) for byte in range(256)]


def test_what_looks_like_a_special_token_is_text(tokenizer):
    ids = tokenizer.encode(b"<|endoftext|>")
    assert len(ids) > 1 and tokenizer.decode(ids) == b"<|endoftext|>"


def test_an_invalid_byte_becomes_one_token_and_leaves_its_neighbours_alone(tokenizer):
    ids = tokenizer.encode(b"the\xfflazy")
    assert ids == [*tokenizer.encode(b"the"), 0xFF, *tokenizer.encode(b"lazy")]


@pytest.mark.parametrize(
    "data",
    [b" " * 1_000_000, b"a" * 1_000_000, b"\n" * 1_000_000, b"the lazy dog " * 80_000],
    ids=["spaces", "one word", "newlines", "one line"],
)
def test_a_megabyte_without_a_break_works(tokenizer, data):
    assert tokenizer.decode(tokenizer.encode(data)) == data


@pytest.mark.parametrize("kind", hard_texts())
def test_hard_texts_are_learned_from_and_come_back(kind):
    # Of one line of 60 kB the trainer would need minutes, if it were not cut.
    data = hard_texts()[kind](60_000)
    tokenizer = train_bpe(iter([data.decode("utf-8", "ignore")]), 300, "gpt-2")
    assert max(len(token.decode("utf-8", "ignore")) for token in tokenizer.tokens) <= 256
    assert tokenizer.decode(tokenizer.encode(data)) == data


def test_a_text_of_ordinary_pieces_is_learned_from_as_it_is(text, trained, monkeypatch):
    monkeypatch.setattr(module, "MAX_LEARNED_PIECE", 1 << 30)
    for name, tokenizer in trained.items():
        assert train_bpe(iter([text]), 400, name).to_text() == tokenizer.to_text()


@settings(max_examples=50)
@given(text=st.lists(st.sampled_from(["a", " ", "b" * 7, "\n" * 8, "c" * 13, "\x1c"])).map("".join))
def test_only_runs_beyond_the_longest_are_cut(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_RUN", 6)
        patch.setattr(module, "_RUNS", re.compile(r"\s{1,6}|\S{1,6}"))
        parts = module._bounded_runs(text)
    runs = [run for part in parts for run in re.findall(r"\s+|\S+", part)]
    expected = [
        run[start : start + 6]
        for run in re.findall(r"\s+|\S+", text)
        for start in range(0, len(run), 6)
    ]
    assert "".join(parts) == text and runs == expected
    assert len(parts) - 1 <= sum(len(run) == 6 for run in runs)


def test_a_long_run_does_not_change_the_words_around_it(tokenizer):
    words = b"It's the lazy dog;  "
    ids = tokenizer.encode(words + b"x" * 60_000 + b" \n" + words)
    assert ids[: len(tokenizer.encode(words)) - 1] == tokenizer.encode(words)[:-1]
    assert ids[-len(tokenizer.encode(words)) :] == tokenizer.encode(words)


def test_a_vocabulary_that_lacks_a_byte_is_refused():
    ranks = {bytes([byte]): byte for byte in range(256) if byte != 0x41}
    with pytest.raises(UserError, match=r"lacks 1 of the 256 single bytes, the first is 0x41"):
        BytePairTokenizer(ranks, PATTERNS["gpt-2"], "hole")


@pytest.mark.parametrize("rank", [255, 300, -1])
def test_a_vocabulary_with_a_gap_or_a_double_id_is_refused(rank):
    with pytest.raises(UserError, match=r"does not number its 257 tokens from 0 to 256"):
        BytePairTokenizer(BYTE_RANKS | {b"ab": rank}, PATTERNS["gpt-2"], "gap")


def test_the_parts_of_a_token_spell_it(trained):
    for tokenizer in trained.values():
        for token, (left, right) in enumerate(tokenizer.merges()):
            if token < 256:
                assert left == right == token
            else:
                assert left < token > right
                assert tokenizer.decode([left, right]) == tokenizer.tokens[token]


def test_a_token_that_no_merges_lead_to_is_its_own(tokenizer):
    ranks = dict(tokenizer.ranks) | {b"zqzq": tokenizer.vocab_size}
    assert BytePairTokenizer(ranks, tokenizer.pattern, "x").merges()[-1] == 2 * (
        tokenizer.vocab_size,
    )


def test_the_file_format_comes_back(trained):
    tokenizer = trained["qwen2"]
    again = BytePairTokenizer.from_text(tokenizer.to_text(), tokenizer.pattern, tokenizer.name)
    assert again.ranks == tokenizer.ranks and again.pattern == tokenizer.pattern
    assert again.to_text() == tokenizer.to_text()


def test_the_file_format_is_tiktokens(trained, tmp_path):
    path = tmp_path / "vocabulary.tiktoken"
    path.write_text(trained["gpt-2"].to_text(), "ascii")
    assert load_tiktoken_bpe(str(path)) == trained["gpt-2"].ranks


@pytest.mark.parametrize("line", ["?? 16", "QQ==", "QQ== x", "QQ== 1 2", "QQ= 16", "é 16"])
def test_a_damaged_line_is_refused_with_its_number(tokenizer, line):
    lines = tokenizer.to_text().splitlines()
    lines[16] = line
    with pytest.raises(UserError, match=r"line 17 of the vocabulary gpt-x is"):
        BytePairTokenizer.from_text("\n".join(lines), tokenizer.pattern, "gpt-x")


def test_a_forged_pattern_that_tiktoken_panics_on_is_a_sentence(tokenizer):
    forged = BytePairTokenizer(tokenizer.ranks, "x*", "forged")  # matches nothing, everywhere
    with pytest.raises(UserError, match="the vocabulary forged cannot encode the text"):
        forged.encode(b"a text")


def test_a_failed_download_names_the_two_ways_without_a_network(monkeypatch):
    def offline(name):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match=r"'gpt2' \(ConnectionError\).*bpe.*data/base/"):
        named_tokenizer("gpt2")


def test_a_named_vocabulary_brings_its_own_pattern(monkeypatch, tokenizer):
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r"\S+|\s+", mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": encoding}.__getitem__)
    named = named_tokenizer("gpt2")
    assert (named.name, named.pattern, named.ranks) == ("gpt2", r"\S+|\s+", tokenizer.ranks)


@pytest.mark.skipif(not (SHARED / "r50k_base.tiktoken").exists(), reason="no GPT-2 vocabulary")
def test_tiny_shakespeare_in_gpt2s_tokens_is_as_long_as_nanogpts():
    vocabulary = (SHARED / "r50k_base.tiktoken").read_text("ascii")
    assert base64.b64decode(vocabulary.split()[0]) == b"!"
    gpt2 = BytePairTokenizer.from_text(vocabulary, PATTERNS["gpt-2"], "r50k_base")
    assert len(gpt2.encode((SHARED / "tinyshakespeare.txt").read_bytes())) == 338_025
