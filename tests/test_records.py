"""Records are read or refused in a sentence, split by prompt, and come back from their tokens."""

import json
import random
from itertools import chain

import pytest

from stages import corpus, tokenize_text
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.corpus.chosen import chosen_survey
from stages.lm.corpus.records import record_corpus
from stages.lm.data.dataset import TokenData
from stages.lm.data.lengths import LONGEST
from stages.lm.data.sequence_packing import last_answers
from stages.lm.data.splits import SPLITS
from stages.lm.settings.corpus import AUTO
from stages.lm.settings.recipes import automatic
from stages.lm.text.records import Record, split_by_prompt, split_records
from stages.lm.text.stored_tokenizer import load_tokenizer


def lines(records):
    return "".join(
        json.dumps({"prompt": record.prompt, "completion": record.completion}) + "\n"
        for record in records
    )


SOME = [Record(f"Frage {n}: ü🙂 \n", f"answer {n % 7}") for n in range(200)]


def read_back(tokens, tokenizer):
    """The records in tokens, without their marks."""
    pairs = [map(tokenizer.decode, pair) for pair in last_answers(tokens)]
    return [Record(prompt.decode(), answer.decode()) for prompt, answer in pairs]


def test_records_are_read_as_written_each_once(workspace):
    plain = json.dumps({"prompt": "ü\u2028", "completion": "b", "id": 3}, ensure_ascii=False)
    (paths.INPUT / "some.jsonl").write_bytes(
        b"\xef\xbb\xbf" + plain.encode() + b"\r\n\n  \n" + lines(SOME[:3] * 2).encode()
    )
    found = record_corpus(chosen_survey(AUTO), {"val": 0.2, "test": 0.2})
    read = chain(*found.records.values())
    assert sorted(read) == sorted([Record("ü\u2028", "b"), *SOME[:3]])
    assert found.lines == ("3 records equal another one and are left out",)


def test_the_order_of_the_file_changes_no_split():
    shuffled = random.Random(1).sample(SOME, len(SOME))
    assert split_records(shuffled, 0.1, 0.2) == split_records(SOME, 0.1, 0.2)


def test_prompts_of_every_kind_are_in_every_split():
    """Sorted by the prompts themselves, the last of an alphabet would all be held out."""
    splits = split_records([Record(f"{i:03}", "x") for i in range(300)], 0.2, 0.2)
    for records in splits.values():
        numbers = [int(record.prompt) for record in records]
        assert min(numbers) < 60 and max(numbers) > 240


def test_every_record_is_in_one_split_of_about_the_size_asked_for():
    splits = split_records(SOME, 0.1, 0.2)
    assert [len(splits[split]) for split in SPLITS] == [140, 20, 40]
    assert sorted(chain(*splits.values())) == sorted(SOME)


@pytest.mark.parametrize("shares", [(0.05, 0.05), (0.5, 0.4), (0.001, 0.001)])
@pytest.mark.parametrize("prompts", [3, 4, 10])
def test_a_prompt_is_in_one_split_and_no_split_is_empty(prompts, shares):
    records = [Record(str(n % prompts), str(n)) for n in range(30)]
    splits = split_records(records, *shares)
    found = [{record.prompt for record in splits[split]} for split in SPLITS]
    assert all(found) and sum(map(len, found)) == len(set.union(*found)) == prompts


@pytest.mark.parametrize("others", [0, 1, 5])
def test_completions_of_few_prompts_are_split_by_record(others):
    records = [Record("", str(n)) for n in range(30)] + [Record(str(n), "") for n in range(others)]
    assert not split_by_prompt(records)
    splits = split_records(records, 0.1, 0.2)
    assert sorted(chain(*splits.values())) == sorted(records)
    assert len(splits["val"]) == 3 and len(splits["test"]) in (6, 7)


def test_two_records_are_too_few():
    with pytest.raises(UserError, match="2 different records cannot be split"):
        split_records([Record("a", "b"), Record("b", "c"), Record("a", "b")], 0.1, 0.1)


def test_records_are_what_is_trained_on(workspace):
    path = workspace / "data" / "input.jsonl"
    path.write_text(lines(SOME))
    before = path.read_bytes()
    corpus.main()
    record = json.loads(paths.CORPUS_METRICS.read_text("utf-8"))
    assert (record["source"], record["bytes"]) == ("records", len(before))
    assert sum(record["records"].values()) == len(SOME)
    assert path.read_bytes() == before


def test_records_that_are_gone_are_not_replaced_by_the_sample(workspace):
    path = workspace / "data" / "input.jsonl"
    path.write_text(lines(SOME))
    corpus.main()
    path.unlink()
    with pytest.raises(UserError, match="trains on records of its own"):
        corpus.main()
    (paths.INPUT / "mine.txt").write_bytes(b"a text of mine\n" * 100)
    corpus.main()
    assert json.loads(paths.CORPUS_METRICS.read_text("utf-8"))["source"] == "text"


@pytest.mark.parametrize("given", [("test",), ("val",), ("val", "test")])
def test_files_for_val_and_test_are_these_splits_and_are_not_trained_on(workspace, given):
    (paths.INPUT / "train.jsonl").write_text(lines(SOME))
    held = {split: [SOME[number], Record(split, "x")] for number, split in enumerate(given)}
    for split, records in held.items():
        (paths.INPUT / f"{split}.jsonl").write_text(lines(records))
    corpus.main()
    tokenize_text.main()
    data = TokenData.load(paths.TOKENS)
    tokenizer = load_tokenizer(data.meta.tokenizer.stored(data.vocabulary))
    found = {split: read_back(getattr(data, split), tokenizer) for split in SPLITS}
    for split, records in held.items():
        assert found[split] == records
    every = list(chain(*found.values()))
    assert all(found.values()) and len(every) == len(set(every)) == len(SOME) + len(given)


@pytest.mark.parametrize("length", [200, 3000])
def test_the_context_holds_nearly_all_records_or_one_line_says_what_would(
    workspace, length, capsys
):
    records = [Record(str(n), "answer " * (length // 7 if n % 2 else 2)) for n in range(60)]
    (paths.INPUT / "input.jsonl").write_text(lines(records))
    tokenize_text.main()
    data = TokenData.load(paths.TOKENS)
    auto = automatic(data.text_bytes(), lengths=data.lengths)
    told = capsys.readouterr().out
    assert data.records.long >= length
    if length < LONGEST["records"]:
        assert "left out" not in told
        assert auto.context >= data.records.long - 1
    else:
        assert "WARNING: 30 of 60 records (50.0 %) are longer than model.context, 2048" in told
        assert auto.context == 2048 and f"{data.records.long} tokens would hold 99 %" in told
    assert auto.values["train.batch_size"] * auto.context <= 4 * 512


def test_records_of_which_none_fits_are_refused_before_training(workspace):
    records = [
        Record(str(n), "".join(random.Random(n).choices("abcdefg", k=7000))) for n in range(60)
    ]
    (paths.INPUT / "input.jsonl").write_text(lines(records))
    with pytest.raises(UserError, match="no record of the train split fits"):
        tokenize_text.main()


def test_tokens_are_those_of_each_record_and_hold_it_whole(workspace):
    path = paths.INPUT / "input.jsonl"
    path.write_text(lines(SOME))
    corpus.main()
    tokenize_text.main()
    data = TokenData.load(paths.TOKENS)
    splits = split_records(SOME, 0.05, 0.05)
    tokenizer = load_tokenizer(data.meta.tokenizer.stored(data.vocabulary))
    for split in SPLITS:
        ids, answers = data.ids(split), last_answers(getattr(data, split))
        said = b"".join(tokenizer.shown(token) for token in ids.tolist()).decode()
        whole = (f"{r.prompt}<|assistant|>{r.completion}<|end|>" for r in splits[split])
        assert said == "".join(whole)
        assert getattr(data.records, split) == len(splits[split]) == len(answers)
        scored = sum(len(record.completion.encode()) + 1 for record in splits[split])
        assert data.meta.splits[split].bytes == scored
    assert data.text_bytes() == path.stat().st_size
