"""Records are read or refused in a sentence, split by prompt, and come back from their tokens."""

import json
import random
from itertools import chain

import pytest

from stages import corpus, tokenize_text
from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.data.dataset import TokenData
from stages.lm.data.sequence_packing import last_answers
from stages.lm.data.splits import SPLITS
from stages.lm.text.records import Record, read_records, split_records
from stages.lm.text.stored_tokenizer import load_tokenizer


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder in the place of the project's data and metrics."""
    monkeypatch.setattr(paths, "INPUT", tmp_path / "input.txt")
    monkeypatch.setattr(paths, "RECORDS", tmp_path / "input.jsonl")
    monkeypatch.setattr(paths, "BASE", tmp_path / "base")
    monkeypatch.setattr(paths, "TOKENS", tmp_path / "tokens")
    monkeypatch.setattr(paths, "CORPUS_METRICS", tmp_path / "corpus.json")
    return tmp_path


def lines(records):
    return "".join(
        json.dumps({"prompt": record.prompt, "completion": record.completion}) + "\n"
        for record in records
    )


SOME = [Record(f"Frage {n}: ü🙂 \n", f"answer {n % 7}") for n in range(200)]


def test_records_are_read_as_written_each_once(tmp_path):
    path = tmp_path / "input.jsonl"
    plain = json.dumps({"prompt": "ü\u2028", "completion": "b", "id": 3}, ensure_ascii=False)
    path.write_bytes(
        b"\xef\xbb\xbf" + plain.encode() + b"\r\n\n  \n" + lines(SOME[:2] * 2).encode()
    )
    assert read_records(path) == [Record("ü\u2028", "b"), *SOME[:2]]


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        (b"{", "line 2 of .* is not JSON"),
        (b"[" * 100_000, "line 2 of .* is not JSON"),
        (b"[1]", "line 2 of .* no object"),
        (b'{"prompt": "a"}', "line 2 of .* has no 'completion' .its keys: prompt."),
        (b'{"prompt": "a", "completion": 1}', "line 2 of .* 'completion' is 1, but"),
        (b'{"prompt": null, "completion": "b"}', "line 2 of .* 'prompt' is null"),
        (b'{"prompt": "a", "completion": ""}', "line 2 of .* 'completion' is empty"),
        (b'{"prompt": "", "completion": "b"}', "line 2 of .* 'prompt' is empty"),
        (b'{"prompt": "a\\ud800", "completion": "b"}', "line 2 of .* half of a character"),
        (b'{"prompt": "\xfe", "completion": "b"}', "line 2 of .* is not UTF-8"),
    ],
)
def test_a_line_that_is_no_record_is_refused_in_a_sentence(tmp_path, line, refusal):
    path = tmp_path / "input.jsonl"
    path.write_bytes(lines(SOME[:1]).encode() + line + b"\n")
    with pytest.raises(UserError, match=refusal):
        read_records(path)


def test_a_file_without_records_is_refused(tmp_path):
    (tmp_path / "input.jsonl").write_text(" \n\n")
    with pytest.raises(UserError, match="holds no record"):
        read_records(tmp_path / "input.jsonl")
    with pytest.raises(UserError, match="could not be read"):
        read_records(tmp_path)


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


def test_two_prompts_are_too_few():
    with pytest.raises(UserError, match="records of 2 prompts"):
        split_records([Record("a", "b"), Record("b", "c"), Record("a", "d")], 0.1, 0.1)


def test_without_a_text_records_are_what_is_trained_on(project):
    paths.RECORDS.write_text(lines(SOME))
    before = paths.RECORDS.read_bytes()
    corpus.main()
    record = json.loads(paths.CORPUS_METRICS.read_text("utf-8"))
    assert (record["source"], record["bytes"]) == ("records", len(before))
    assert paths.INPUT.read_bytes() == b"" and paths.RECORDS.read_bytes() == before


def test_records_take_the_place_of_the_sample_and_of_nothing_else(project, sample):
    paths.INPUT.write_bytes(sample)
    paths.RECORDS.write_text(lines(SOME))
    corpus.main()
    assert paths.INPUT.read_bytes() == b""
    paths.INPUT.write_bytes(b"a text of mine\n" * 100)
    with pytest.raises(UserError, match=r"holds records and .* holds a text"):
        corpus.main()
    assert paths.INPUT.read_bytes() == b"a text of mine\n" * 100


def test_without_anything_the_sample_is_written_and_no_records(project, sample):
    corpus.main()
    assert paths.RECORDS.read_bytes() == b"" and paths.INPUT.read_bytes() == sample


@pytest.mark.parametrize("left", ["nothing", "what the stage left"])
def test_records_that_are_gone_are_not_replaced_by_the_sample(project, left):
    paths.RECORDS.write_text(lines(SOME))
    corpus.main()
    paths.RECORDS.unlink()
    if left == "nothing":
        paths.INPUT.unlink()
    with pytest.raises(UserError, match=r"data/input\.jsonl is missing or empty"):
        corpus.main()
    paths.INPUT.write_bytes(b"a text of mine\n" * 100)
    corpus.main()
    assert json.loads(paths.CORPUS_METRICS.read_text("utf-8"))["source"] == "own"


def test_tokens_are_those_of_each_record_and_hold_it_whole(project):
    paths.RECORDS.write_text(lines(SOME))
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
    assert data.text_bytes() == paths.RECORDS.stat().st_size
