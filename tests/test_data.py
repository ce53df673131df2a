"""Every byte of the text becomes tokens once, and every token is trained on in every epoch."""

import random
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokens_on_disk import write_split

from stages.lm.core.errors import UserError
from stages.lm.data import splits
from stages.lm.data.dataset import TokenData, token_dtype, token_file, write_meta
from stages.lm.data.meta import RecordsMeta, SplitMeta, TokenizerMeta, TokensMeta
from stages.lm.data.splits import read_chunks, split_bounds
from stages.lm.data.windows import WindowSampler, epoch_starts, gather
from stages.lm.text.tokenizer import PATTERNS, train_bpe
from stages.lm.training.token_splitting import split_tokens

PIECES = [
    *[b"the", b" dog", b"'s", b"a", b"Z", b"7", b" ", b"  ", b"\t", b"\n", b"\n\n", b"\r\n", b"\r"],
    *[b"/", b"!", b"...", b".\n", b"a\n", b"\n/", b"\n'", b"\xff", b"\xe3", b"\x80", b"\xb0\n"],
    *["我们".encode(), "。\n".encode(), "🙂".encode(), "ü\n".encode(), "\u3000".encode()],
    *["\u00a0".encode(), "\u2028".encode(), "\u0301".encode(), "\u0085".encode(), b"\x1c", b"\x0b"],
]
A_PIECE = st.sampled_from(PIECES)
TEXTS = st.lists(A_PIECE, min_size=1, max_size=60).map(b"".join)
# Around every new line anything may stand: that is where chunks are cut.
LINES = st.lists(st.tuples(A_PIECE, st.just(b"\n"), A_PIECE), min_size=8, max_size=40).map(
    lambda lines: b"".join(b"".join(line) for line in lines)
)


@pytest.fixture(scope="module")
def trained():
    """A vocabulary for each pattern that merges whatever the pattern lets it around new lines."""
    pieces = random.Random(0).choices([*PIECES, *[b"\n"] * len(PIECES)], k=60_000)
    text = b"".join(pieces).decode("utf-8", "ignore")
    return {name: train_bpe(iter([text]), 3000, name) for name in PATTERNS}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("text") / "input.txt"


@pytest.fixture
def small_chunks(monkeypatch):
    """Lets a test set the chunk sizes, so that short texts have many chunks."""

    def shrink(size, most=1 << 30):
        monkeypatch.setattr(splits, "CHUNK_BYTES", size)
        monkeypatch.setattr(splits, "MAX_CHUNK_BYTES", most)

    return shrink


# Text in chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", PATTERNS)
def test_chunks_encode_as_the_whole_text_does(trained, file, small_chunks, pattern):
    tokenizer = trained[pattern]
    cuts = 0

    @settings(max_examples=120)
    @given(text=LINES, size=st.integers(1, 24))
    def check(text, size):
        nonlocal cuts
        small_chunks(size)
        file.write_bytes(text)
        chunks = list(read_chunks(file, range(len(text))))
        cuts += len(chunks) - 1
        ids = chain.from_iterable(map(tokenizer.encode, chunks))
        assert list(ids) == tokenizer.encode(text)

    check()
    assert cuts > 300


@given(text=TEXTS, size=st.integers(1, 32), most=st.integers(4, 64), bounds=st.data())
def test_chunks_joined_are_the_part_of_the_file(file, text, size, most, bounds):
    start = bounds.draw(st.integers(0, len(text)))
    part = range(start, bounds.draw(st.integers(start, len(text))))
    file.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splits, "CHUNK_BYTES", size)
        patch.setattr(splits, "MAX_CHUNK_BYTES", most)
        chunks = list(read_chunks(file, part))
    assert b"".join(chunks) == text[part.start : part.stop] and b"" not in chunks


@pytest.mark.parametrize("line", ["模型" * 200, "🙂" * 200, "ü" * 200, "aü🙂模" * 100, "a" * 500])
@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_an_endless_line_is_cut_between_characters_in_bounded_pieces(
    file, small_chunks, line, size
):
    small_chunks(size, most=32)
    file.write_bytes(line.encode())
    chunks = list(read_chunks(file, range(len(line.encode()))))
    assert "".join(chunk.decode("utf-8") for chunk in chunks) == line
    assert len(chunks) > 10 and max(map(len, chunks)) <= 32 + 2 * size


def test_an_endless_line_of_broken_bytes_ends(file, small_chunks):
    small_chunks(4, most=8)
    file.write_bytes(b"\x80" * 1000)
    assert b"".join(read_chunks(file, range(1000))) == b"\x80" * 1000


def test_a_text_with_lines_is_read_about_a_chunk_at_a_time(file, small_chunks):
    small_chunks(1000)
    file.write_bytes(b"a short line\n" * 1000)
    assert max(map(len, read_chunks(file, range(13_000)))) < 2000


def test_a_file_that_shrinks_while_it_is_read_is_refused(file):
    file.write_bytes(b"short")
    with pytest.raises(UserError, match="became shorter"):
        list(read_chunks(file, range(10)))


# Splits -------------------------------------------------------------------------------------------


@given(
    size=st.integers(0, 10**12),
    val=st.floats(0.001, 0.45),
    test=st.floats(0.001, 0.45),
)
def test_splits_cover_the_text_in_order_without_gaps(size, val, test):
    bounds = split_bounds(size, val, test)
    assert list(bounds) == ["train", "val", "test"]
    assert bounds["train"].start == 0 and bounds["test"].stop == size
    assert bounds["train"].stop == bounds["val"].start <= bounds["val"].stop
    assert bounds["val"].stop == bounds["test"].start <= size
    assert abs(len(bounds["val"]) - size * val) < 2 and abs(len(bounds["test"]) - size * test) < 2


@pytest.mark.parametrize("size", [100, 1000, 123_000])
def test_a_share_that_is_a_whole_number_of_bytes_is_exact(size):
    bounds = split_bounds(size, 0.05, 0.05)
    assert [len(part) * 20 for part in bounds.values()] == [18 * size, size, size]


def test_tiny_shakespeare_is_held_out_from_where_nanogpt_holds_it_out():
    bounds = split_bounds(1_115_394, 0.05, 0.05)
    assert bounds["train"] == range(0, 1_003_854) and bounds["test"].stop == 1_115_394


# Tokens on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab_size", "dtype"), [(256, "<u2"), (65_536, "<u2"), (65_537, "<u4")])
def test_the_dtype_is_the_smallest_that_holds_every_id(vocab_size, dtype):
    assert token_dtype(vocab_size) == np.dtype(dtype)
    assert np.iinfo(token_dtype(vocab_size)).max >= vocab_size - 1


@pytest.mark.parametrize("vocab_size", [300, 100_000])
@given(chunks=st.lists(st.lists(st.integers(0, 299), max_size=20), max_size=10))
def test_written_tokens_are_what_numpy_reads(file, vocab_size, chunks):
    path = file.with_name("tokens.npy")
    dtype = token_dtype(vocab_size)
    with token_file(path, dtype) as file:
        for chunk in chunks:
            file.append(chunk)
    count = file.count
    read = np.load(path, mmap_mode="r" if count else None, allow_pickle=False)
    assert read.tolist() == list(chain.from_iterable(chunks))
    assert count == len(read) and read.dtype == dtype


def folder_of_tokens(folder, **splits):
    metas = {
        name: write_split(folder, name, [ids], 100, 10 * len(ids)) for name, ids in splits.items()
    }
    write_rest(folder, [(n, n) for n in range(99)] + [(3, 5)], metas)
    return folder


def write_rest(folder, merges, splits):
    write_meta(folder, TokenizerMeta("bpe", "x"), "QQ== 0\n", merges, splits)


@pytest.fixture
def tokens_folder(tmp_path):
    return folder_of_tokens(tmp_path, train=[1, 2, 3, 4, 5], val=[6, 7], test=[8, 9, 10])


def test_token_data_opens_what_was_written(tokens_folder):
    loaded = TokenData.load(tokens_folder)
    assert loaded.train.tolist() == [1, 2, 3, 4, 5] and loaded.test.tolist() == [8, 9, 10]
    assert isinstance(loaded.val, np.memmap)
    assert loaded.vocabulary == "QQ== 0\n" and len(loaded.digest()) == 64
    assert loaded.text_bytes() == 100
    assert loaded.merges.shape == (100, 2) and loaded.merges[98:].tolist() == [[98, 98], [3, 5]]


@pytest.mark.parametrize("offset", [0, 9, 20, 127, 128, -1])
def test_a_changed_byte_of_the_tokens_is_refused(tokens_folder, offset):
    path = tokens_folder / "val.npy"
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"val\.npy is not what was written.*`dvc repro`"):
        TokenData.load(tokens_folder)


@pytest.mark.parametrize(
    "name",
    ["train.npy", "val.npy", "test.npy", "merges.npy", "tokenizer.tiktoken", "meta.json"],
)
def test_a_missing_file_of_the_tokens_is_refused(tokens_folder, name):
    (tokens_folder / name).unlink()
    with pytest.raises(UserError, match="`dvc repro`"):
        TokenData.load(tokens_folder)


def test_another_vocabulary_beside_the_tokens_is_refused(tokens_folder):
    (tokens_folder / "tokenizer.tiktoken").write_text("Qg== 0\n")
    with pytest.raises(UserError, match=r"tokenizer\.tiktoken is not what was written"):
        TokenData.load(tokens_folder)


@pytest.mark.parametrize("content", ["{}", "[]", '{"splits": 5}', "{"])
def test_damaged_meta_is_refused(tokens_folder, content):
    (tokens_folder / "meta.json").write_text(content)
    with pytest.raises(UserError, match="`dvc repro`"):
        TokenData.load(tokens_folder)


def test_a_changed_value_of_meta_is_refused(tokens_folder):
    path = tokens_folder / "meta.json"
    path.write_text(path.read_text().replace('"bytes": 50', '"bytes": 51'))
    with pytest.raises(UserError, match=r"meta\.json is not what was written"):
        TokenData.load(tokens_folder)


@pytest.mark.parametrize("records", [None, RecordsMeta(1, 2, 3, bytes=99, long=9)])
def test_meta_comes_back_as_it_was_written(tmp_path, records):
    splits = {"val": SplitMeta(5, 20, "digest")}
    meta = TokensMeta(300, TokenizerMeta("bpe", " ?\\p{L}+"), splits, "a", "b", records)
    meta.save(tmp_path / "meta.json")
    assert TokensMeta.load(tmp_path / "meta.json") == meta


@pytest.mark.parametrize(
    ("split", "count", "expected"),
    [
        ("train", 3, []),
        ("val", 3, [3, 4, 5]),
        ("val", 99, [1, 2, 3, 4, 5]),
        ("test", 1, [7]),
        ("test", 4, [4, 5, 6, 7]),
        ("test", 0, []),
    ],
)
def test_what_precedes_a_split_is_the_end_of_the_earlier_ones(
    tokens_folder, split, count, expected
):
    preceding = TokenData.load(tokens_folder).preceding(split, count)
    assert preceding.tolist() == expected and preceding.dtype == np.dtype("<u2")


# Windows ------------------------------------------------------------------------------------------

ORDERS = st.builds(
    WindowSampler,
    tokens=st.integers(2, 400),
    context=st.integers(1, 64),
    batch=st.integers(1, 40),
    seed=st.integers(0, 2**31 - 1),
)


@settings(max_examples=200)
@given(order=ORDERS, epoch=st.integers(0, 100))
def test_every_token_is_input_and_target_in_every_epoch(order, epoch):
    starts = epoch_starts(order, epoch)
    assert len(starts) == order.per_epoch
    assert starts.min() >= 0 and starts.max() + order.length + 1 <= order.tokens
    inputs = {token for start in starts for token in range(start, start + order.length)}
    targets = {token + 1 for token in inputs}
    assert inputs == set(range(order.tokens - 1)) and targets == set(range(1, order.tokens))


@given(order=ORDERS, epochs=st.integers(1, 4))
def test_batches_are_full_and_hold_each_window_of_each_epoch_once(order, epochs):
    steps = order.num_batches(epochs)
    batches = [order.batch_starts(step) for step in range(steps)]
    assert {len(batch) for batch in batches} == {order.batch}
    joined = np.concatenate(batches)
    assert epochs * order.per_epoch <= len(joined) < epochs * order.per_epoch + order.batch
    for epoch in range(epochs):
        part = joined[epoch * order.per_epoch : (epoch + 1) * order.per_epoch]
        assert Counter(part.tolist()) == Counter(epoch_starts(order, epoch).tolist())


def test_an_epoch_repeats_at_most_two_windows_of_work():
    order = WindowSampler(tokens=10_001, context=100, batch=8, seed=1)
    assert order.per_epoch == 101
    assert len(set(epoch_starts(order, 0).tolist())) == 101


def test_the_same_seed_gives_the_same_order_and_another_seed_another():
    def order(seed):
        epoch_starts.cache_clear()
        return epoch_starts(WindowSampler(tokens=5000, context=32, batch=4, seed=seed), 2).tolist()

    assert order(7) == order(7) and order(7) != order(8)


def test_epochs_differ_in_order_and_in_offset():
    order = WindowSampler(tokens=5000, context=32, batch=4, seed=7)
    orders = [epoch_starts(order, epoch) for epoch in range(8)]
    assert len({tuple(starts) for starts in orders}) == 8
    assert len({np.median(starts % 32) for starts in orders}) > 2


def test_a_batch_depends_on_the_step_alone():
    order = WindowSampler(tokens=999, context=16, batch=10, seed=7)
    straight = [order.batch_starts(step).tolist() for step in range(30)]
    epoch_starts.cache_clear()
    backwards = [order.batch_starts(step).tolist() for step in reversed(range(30))]
    assert straight == backwards[::-1]


def test_gathered_windows_end_with_the_token_after_them():
    rows = gather(np.arange(100, dtype=np.uint16) * 600, np.array([0, 40]), 3)
    assert rows.dtype == np.int64
    assert rows.tolist() == [[0, 600, 1200, 1800], [24000, 24600, 25200, 25800]]


@pytest.mark.parametrize("pair", [(99, 3), (3, 99), (2, 100)])
def test_merges_that_never_end_are_refused(tokens_folder, pair):
    splits = TokenData.load(tokens_folder).meta.splits
    write_rest(tokens_folder, [(n, n) for n in range(99)] + [pair], splits)
    with pytest.raises(UserError, match=r"merges\.npy holds merges (that never end|of no)"):
        TokenData.load(tokens_folder)


# Splitting tokens ---------------------------------------------------------------------------------

MERGES = np.array([[0, 0], [1, 1], [2, 2], [0, 1], [3, 2], [4, 4]])
"""Of the tokens a, b, c, ab, abc, abcabc."""
SPELLED = ["a", "b", "c", "ab", "abc", "abcabc"]


@given(
    rows=st.lists(st.lists(st.integers(0, 5), min_size=12, max_size=12), min_size=1, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_split_tokens_spell_the_same_text_as_far_as_they_fit(rows, share, seed):
    rows = np.array(rows)
    split = split_tokens(rows, MERGES, share, np.random.default_rng(seed))
    assert split.shape == rows.shape
    for before, after in zip(rows, split, strict=True):
        text = "".join(SPELLED[token] for token in before)
        assert text.startswith("".join(SPELLED[token] for token in after))
    again = split_tokens(rows, MERGES, share, np.random.default_rng(seed))
    assert np.array_equal(split, again)


def test_each_merge_is_undone_with_the_chance_asked_for():
    rows = np.tile([4, *[0] * 9], (20_000, 1))
    split = split_tokens(rows, MERGES, 0.3, np.random.default_rng(1))
    whole, halved, single = ((split[:, 0] == token).mean() for token in (4, 3, 0))
    assert whole == pytest.approx(0.7, abs=0.015)
    assert halved == pytest.approx(0.3 * 0.7, abs=0.015)
    assert single == pytest.approx(0.3 * 0.3, abs=0.015)
    assert np.array_equal(split_tokens(rows, MERGES, 0.0, np.random.default_rng(1)), rows)
