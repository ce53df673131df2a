"""Documents begin and end: in the rows of training, in the splits, in what a model writes."""

import json
import random
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stages import corpus, tokenize_text
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.corpus import documents
from stages.lm.corpus.assignment import given_split, split_by_hash
from stages.lm.corpus.chosen import chosen_survey, corpus_of
from stages.lm.corpus.duplicates import SIMILAR, DuplicateFinder, common_share, smaller_hashes
from stages.lm.data import token_text
from stages.lm.data.dataset import TokenData
from stages.lm.data.document_rows import document_rows, document_targets, gather_rows
from stages.lm.data.lengths import LONGEST, Lengths
from stages.lm.data.meta import DocumentsMeta, SplitMeta, TokenizerMeta, TokensMeta
from stages.lm.data.sequence_packing import IGNORE_INDEX
from stages.lm.data.splits import SPLITS
from stages.lm.data.token_text import TokenText
from stages.lm.model.scoring import final_states, score, score_documents, score_split
from stages.lm.settings.corpus import AUTO
from stages.lm.settings.recipes import automatic
from stages.lm.text.records import TEXT_END
from stages.lm.text.stored_tokenizer import load_tokenizer
from stages.lm.training.batches import Batches
from stages.lm.training.trainer import Trainer

END = 0


def drawn_tokens(draw, longest=30):
    """A split of random documents; it may end within one."""
    tokens = [END]
    for _ in range(draw.randint(1, 12)):
        tokens += [*draw.choices(range(1, 50), k=draw.randint(1, longest)), END]
    return np.array(tokens[: -1 if draw.random() < 0.3 and len(tokens) > 3 else None])


# Rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlapping", [False, True])
def test_rows_have_every_token_as_a_target_once_and_cut_no_document_that_fits(overlapping):
    for seed in range(300):
        draw = random.Random(seed)
        tokens, context = drawn_tokens(draw), draw.randint(2, 20)
        overlap = draw.randrange(context) if overlapping else 0
        rows = document_rows(tokens, END, context, overlap)
        first, scored, stop = rows.T
        assert (stop - first <= context).all()
        assert scored[0] == 0 and stop[-1] == len(tokens) - 1 and (scored[1:] == stop[:-1]).all()
        length = int((stop - first).max())
        targets, segments = document_targets(gather_rows(tokens, rows, length, END), END)
        indices = rows[:, :1] + np.arange(length)
        own = (indices >= rows[:, 1:2]) & (indices < rows[:, 2:])
        assert targets[own].tolist() == tokens[1:].tolist()
        others = (targets != IGNORE_INDEX) & ~own
        assert overlap or not others[:-1].any()
        assert (np.diff(segments, axis=1) >= 0).all()
        for begin, end in pairwise(np.flatnonzero(tokens == END)):
            if end - begin <= context and not overlap:
                assert not ((scored > begin) & (scored < end)).any()


def test_attention_and_targets_stay_within_documents():
    tokens = np.array([END, 1, 2, END, 3, END])
    (row,) = gather_rows(tokens, document_rows(tokens, END, 8), 7, END)[:1]
    targets, segments = document_targets(row[None], END)
    assert row.tolist() == [END, 1, 2, END, 3, END, END, END]
    assert targets[0].tolist() == [1, 2, END, 3, END, IGNORE_INDEX, IGNORE_INDEX]
    assert segments[0].tolist() == [1, 1, 1, 2, 2, 3, 4]


def data_of(train, val):
    meta = TokensMeta(
        50, TokenizerMeta("bpe", ""), {"val": SplitMeta(len(val), 3 * len(val), "")}, "", "",
        documents=DocumentsMeta(1, 1, 1, END, bytes=999, long=9),
    )  # fmt: skip
    merges = np.arange(50).repeat(2).reshape(50, 2)
    return TokenData(train, val, val, merges, meta, vocabulary="")


@pytest.mark.parametrize("documents", [True, False])
def test_final_states_are_those_that_a_split_is_scored_by(make_model, machine, documents):
    draw = random.Random(2)
    data = data_of(drawn_tokens(draw), drawn_tokens(draw))
    if not documents:
        data = replace(data, meta=replace(data.meta, documents=None))
    model = make_model(vocab_size=50, context=12)
    states, targets = final_states(model, data, "val", machine, 10_000)
    nats, count = score_split(model, data, "val", machine)
    assert len(states) == len(targets) == count
    loss = F.cross_entropy(model.logits(states), targets, reduction="sum")
    assert loss.item() == pytest.approx(nats, rel=1e-5)
    assert len(final_states(model, data, "val", machine, 15)[1]) < count


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
def test_a_document_is_scored_as_if_it_were_alone(make_model, machine, arch):
    model = make_model(arch, vocab_size=50, context=12)
    draw = random.Random(0)
    tokens = drawn_tokens(draw)
    for min_context in (0, 5):
        nats, count = score_documents(model, tokens, END, machine, min_context=min_context)
        assert count == len(tokens) - 1
    alone = 0.0
    for begin, end in pairwise([*np.flatnonzero(tokens == END), len(tokens)]):
        part = tokens[begin : end + 1]
        if len(part) > 1:
            alone += score(model, part[1:], part[:1], machine, min_context=5)[0]
    longest = max(b - a for a, b in pairwise(np.flatnonzero(tokens == END)))
    assert longest > 12, "some documents are longer than the context"
    assert nats == pytest.approx(alone, rel=0.02)
    short = drawn_tokens(random.Random(1), longest=10)
    short = short[: np.flatnonzero(short == END)[-1] + 1]
    together, _ = score_documents(model, short, END, machine)
    parts = [short[a : b + 1] for a, b in pairwise(np.flatnonzero(short == END))]
    assert together == pytest.approx(
        sum(score(model, part[1:], part[:1], machine)[0] for part in parts), rel=1e-4
    )


def test_every_epoch_trains_on_every_row_once(make_train_settings):
    tokens = drawn_tokens(random.Random(2))
    tokens = np.concatenate([tokens[: np.flatnonzero(tokens == END)[-1]]] * 9 + [[END]])
    settings = make_train_settings(batch_size=1, epochs=2)
    batches = Batches(data_of(tokens, tokens), 16, settings, torch.device("cpu"))
    assert batches.total_steps == 2 * batches.num_windows
    for epoch in range(2):
        learned = []
        for step in range(epoch * batches.num_windows, (epoch + 1) * batches.num_windows):
            (batch,) = batches.micro_batches(step, 0.0)
            kept = batch.targets != IGNORE_INDEX
            assert batch.num_targets == int(kept.sum())
            learned += batch.targets[kept].tolist()
        assert sorted(learned) == sorted(tokens[1:].tolist())


def test_a_model_learns_where_documents_end(initialised_model, machine, make_train_settings):
    document = [END, 5, 6, 7, 8]
    tokens = np.array([*document * 60, END])
    model = initialised_model(vocab_size=50, context=16)
    settings = make_train_settings(epochs=6, batch_size=4)
    trainer = Trainer(model, data_of(tokens, np.array([*document * 4, END])), settings, machine)
    trainer.initialize("random")
    trainer.fit(lambda: None, lambda: False)
    model.load_state_dict(trainer.best)
    with torch.inference_mode():
        assert model(torch.tensor([document])).argmax(-1)[0].tolist() == [5, 6, 7, 8, END]


def test_a_run_that_stops_within_an_epoch_continues_to_the_same_weights(
    initialised_model, machine, make_train_settings
):
    tokens = drawn_tokens(random.Random(2))
    settings = make_train_settings(epochs=4, batch_size=1, split_tokens=0.2)

    def trainer():
        return Trainer(
            initialised_model(vocab_size=50, context=8), data_of(tokens, tokens), settings, machine
        )

    whole, first, second = trainer(), trainer(), trainer()
    whole.initialize("random")
    whole.fit(lambda: None, lambda: False)
    first.initialize("random")
    stops = iter([False, False, True])
    first.fit(lambda: None, lambda: next(stops))
    second.restore(first.state_dict())
    second.fit(lambda: None, lambda: False)
    assert second.progress.step == whole.progress.step > 3
    for name, tensor in whole.best.items():
        assert torch.equal(tensor, second.best[name]), name


# Splits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "split"),
    [
        *[("val.txt", "val"), ("validation/a.md", "val"), ("Valid-2.csv", "val")],
        *[
            ("test.jsonl", "test"),
            ("test_1/b.txt", "test"),
            ("TEST", "test"),
            ("train.txt", "train"),
        ],
        *[
            ("values.txt", None),
            ("testimony.md", None),
            ("my test.txt", None),
            ("a/test.txt", None),
        ],
    ],
)
def test_files_for_a_split_are_known_by_their_name(name, split):
    assert given_split(name) == split


def test_equal_documents_are_in_one_split_and_no_split_is_empty():
    for seed in range(200):
        draw = random.Random(seed)
        count = draw.randint(3, 40)
        groups = np.array([draw.randrange(number + 1) for number in range(count)])
        groups[:3] = range(3)
        groups = np.minimum.reduce([groups[groups], groups])
        sizes = np.array([draw.choice([1, 10, 5000]) for _ in range(count)])
        hashes = np.array([hash((seed, int(group))) % 2**60 for group in groups], np.uint64)
        splits = split_by_hash(sizes, groups, hashes, {"val": 0.05, "test": 0.1})
        assert set(splits.tolist()) == {0, 1, 2}
        for group in set(groups.tolist()):
            assert len(set(splits[groups == group].tolist())) == 1
        shuffled = np.array(draw.sample(range(count), count))
        again = split_by_hash(
            sizes[shuffled], groups[shuffled], hashes[shuffled], {"val": 0.05, "test": 0.1}
        )
        assert again.tolist() == splits[shuffled].tolist()


WORDS = ["".join(random.Random(n).choices("etaoinshr", k=5)) for n in range(300)]


def prose(seed, words=120):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def run(files):
    """Run both stages on some files; returns the tokens, and the bytes of each split."""
    for name, text in files.items():
        path = paths.INPUT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    corpus.main()
    tokenize_text.main()
    data = TokenData.load(paths.TOKENS)
    tokenizer = load_tokenizer(data.meta.tokenizer.stored(data.vocabulary))
    whole = {split: TokenText(getattr(data, split), tokenizer.tokens) for split in SPLITS}
    return data, {split: text.read(0, text.size) for split, text in whole.items()}


def test_documents_are_split_whole_and_end(workspace):
    files = {f"{n}.txt": prose(n, words=5 + n) for n in range(60)}
    data, texts = run(files)
    found = [part for text in texts.values() for part in text.split(TEXT_END)[1:-1]]
    assert sorted(found) == sorted(text.encode() for text in files.values())
    assert all(text.startswith(TEXT_END) and text.endswith(TEXT_END) for text in texts.values())
    for split, text in texts.items():
        assert data.meta.splits[split].bytes == len(text) - 1
        assert data.scored_tokens(split) == data.meta.splits[split].tokens - 1
    record = json.loads(paths.CORPUS_METRICS.read_text("utf-8"))
    assert record["source"] == "documents" and sum(record["documents"].values()) == 60
    assert record["bytes"] == data.text_bytes() == sum(map(len, files.values()))


@pytest.mark.parametrize("count", [1, 2, 19])
def test_few_documents_are_split_by_position(workspace, count):
    rows = [{"text": prose(n)} for n in range(count)]
    data, texts = run({"some.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    joined = b"".join(row["text"].encode() + TEXT_END for row in rows)
    parts = [text[1:] for text in texts.values()]
    assert b"".join(parts) == joined
    assert sum(data.meta.splits[split].bytes for split in SPLITS) == len(joined)
    assert [len(part) for part in parts] == pytest.approx(
        [0.9 * len(joined), 0.05 * len(joined), 0.05 * len(joined)], abs=count + 1
    )


def test_a_single_text_has_no_ends_and_keeps_its_bytes(workspace):
    text = ("a line of text\n" * 100).encode() + b"\xff\xfe"
    data, texts = run({"whatever.md": text})
    assert data.documents is None and b"".join(texts.values()) == text


@pytest.mark.parametrize("given", [{"val"}, {"test"}, {"val", "test"}])
@pytest.mark.parametrize("many", [True, False])
def test_files_for_val_and_test_are_these_splits(workspace, given, many):
    names = {"train": "train/{}.txt" if many else "train.txt"}
    count = 30 if many else 1
    files = {names["train"].format(n): prose(n, words=400) for n in range(count)}
    for number, split in enumerate(sorted(given)):
        files[f"{split}.txt"] = prose(1000 + number)
    if many:
        files["train/copy.txt"] = files[f"{min(given)}.txt"]
    _, texts = run(files)
    for split in given:
        assert texts[split].strip(TEXT_END) == files[f"{split}.txt"].encode()
        assert texts[split].strip(TEXT_END) not in texts["train"]
    assert all(texts.values())
    every = b"".join(text.strip(TEXT_END) for text in texts.values())
    assert len(every) >= sum(map(len, files.values())) - (len(prose(1000)) + 60 if many else 0)


def test_bytes_that_look_like_an_end_are_none(workspace):
    files = {f"{n}.txt": prose(n).encode() + b"\xff" + bytes([n]) for n in range(30)}
    data, texts = run(files)
    assert sum(text.count(TEXT_END) - 1 for text in texts.values()) == 30
    assert "\ufffd".encode() in texts["train"]
    assert data.documents.train + data.documents.val + data.documents.test == 30


# Duplicates ---------------------------------------------------------------------------------------


def found_in(texts, piece=10**9):
    finder = DuplicateFinder()
    for text in texts:
        starts = range(0, len(text), piece)
        for start in starts:
            finder.add(text[start : start + piece], start != starts[-1])
    return finder.found()


def test_equal_and_nearly_equal_documents_are_found_and_no_others():
    texts = [prose(n, words=200).encode() for n in range(200)]
    edited = [text.replace(text[500:505], b"OTHER", 1) for text in texts[:50]]
    half = [texts[n][:500] + texts[n + 1][500:] for n in range(50, 70)]
    found = found_in([*texts, *edited, *texts[100:120], *half, b"a name", b"a name", b"another"])
    assert (found.equal, found.similar) == (21, 50)
    assert found.first[200:250].tolist() == list(range(50))
    assert found.first[250:270].tolist() == list(range(100, 120))
    assert found.first[270:290].tolist() == list(range(270, 290))


@pytest.mark.parametrize("piece", [400, 1000])
def test_long_documents_in_pieces_are_compared_as_well(piece):
    texts = [prose(n, words=1500).encode() for n in range(5)]
    edited = [text[:3000] + b"SOMETHING ELSE" + text[3000:] for text in texts]
    found = found_in([*texts, *edited], piece)
    assert (found.equal, found.similar) == (0, 5) or piece == 400  # other windows, a few


def test_sketches_estimate_the_share_in_common():
    one, other = (prose(n, words=2000).encode() for n in range(2))
    for share in (0.1, 0.5, 0.9):
        cut = int(share * len(one))
        mixed = one[:cut] + other[cut:]
        sketches = [smaller_hashes(np.empty(0, np.uint64), text)[None] for text in (one, mixed)]
        expected = share / (2 - share)
        assert common_share(*sketches)[0] == pytest.approx(expected, abs=0.25)
    assert 0.5 < SIMILAR < 1


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_duplicates_are_told_and_dropped_if_asked(workspace, duplicates):
    for name, number in [*((f"{n}.txt", n) for n in range(40)), ("copy.txt", 3)]:
        (paths.INPUT / name).write_text(prose(number))
    settings = replace(AUTO, duplicates=duplicates)
    found = corpus_of(chosen_survey(settings), settings, {"val": 0.1, "test": 0.1})
    (line,) = found.lines
    assert "1 documents equal an earlier one, 0 nearly do" in line
    assert ("left out" in line) == (duplicates == "drop") and "keep" not in line.split("(")[0]
    splits = [piece.split for piece in found.read() if piece.data == prose(3).encode() + TEXT_END]
    assert len(splits) == (1 if duplicates == "drop" else 2) and len(set(splits)) == 1
    assert sum(found.counts.values()) == (40 if duplicates == "drop" else 41)


# Sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "long", "context"),
    [
        *[("documents", 9, 256), ("documents", 257, 256), ("documents", 300, 512)],
        *[("documents", 9000, 256), ("records", 9, 256), ("records", 700, 1024)],
        ("records", 9000, LONGEST["records"]),
    ],
)
def test_the_context_of_auto_holds_nearly_all(kind, long, context):
    usual = automatic(50_000)
    auto = automatic(50_000, lengths=Lengths(kind, long))
    assert auto.context == auto.values["model.context"] == context
    tokens = usual.values["train.batch_size"] * usual.values["model.context"]
    assert auto.values["train.batch_size"] == max(1, tokens // context)


def test_too_few_documents_are_refused(workspace):
    files = {f"{n}.txt": "the same in all of them" for n in range(30)}
    with pytest.raises(UserError, match="1 different document cannot be split"):
        run(files)


def test_too_many_documents_are_refused(workspace, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENTS", 30)
    files = {"names.csv": "name\n" + "".join(f"{n}\n" for n in range(31))}
    with pytest.raises(UserError, match="more than 30 documents"):
        run(files)


# Text from tokens ---------------------------------------------------------------------------------


def test_any_part_of_a_text_is_read_from_its_tokens(monkeypatch):
    monkeypatch.setattr(token_text, "BLOCK_TOKENS", 7)
    draw = random.Random(0)
    vocabulary = [draw.randbytes(draw.randint(1, 5)) for _ in range(50)]
    ids = np.array(draw.choices(range(50), k=200))
    whole = b"".join(vocabulary[number] for number in ids)
    text = TokenText(ids, vocabulary)
    assert text.size == len(whole) and b"".join(text.blocks()) == whole
    for _ in range(300):
        start, size = draw.randint(0, len(whole)), draw.randint(0, 60)
        assert text.read(start, size) == whole[start : start + size]
