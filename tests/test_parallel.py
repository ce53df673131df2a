"""All cores give the ids that one gives, in order, and read no further ahead than they must."""

from itertools import chain

import numpy as np
import pytest

from stages import tokenize_text
from stages.lm.corpus.corpus import Corpus, Piece
from stages.lm.text import parallel
from stages.lm.text.parallel import encode_chunks, encode_pieces

CHUNKS = [b"the lazy dog %d\n" % number * (number % 7) for number in range(200)] + [b"\xff", b""]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(parallel, "BATCH_BYTES", 100)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_workers_gives_the_same_ids(tokenizer, workers):
    parts = list(encode_chunks(tokenizer, iter(CHUNKS), workers))
    assert len(parts) > 50 and parts[0][0].dtype == np.dtype("<u2")
    ids = np.concatenate([ids for ids, _ in parts]).tolist()
    assert ids == list(chain.from_iterable(map(tokenizer.encode, CHUNKS)))
    assert sum(size for _, size in parts) == sum(map(len, CHUNKS))


def test_nothing_gives_nothing(tokenizer):
    assert list(encode_chunks(tokenizer, [])) == []


def test_little_is_read_ahead(tokenizer):
    read = 0

    def chunks():
        nonlocal read
        for _ in range(100):
            read += 1
            yield b"x" * 100

    for done, _ in enumerate(encode_chunks(tokenizer, chunks(), workers=3), 1):
        assert read - done <= 6


def test_an_error_of_a_worker_comes_out(tokenizer, monkeypatch):
    def fail(data, follows):
        raise ValueError("no")

    monkeypatch.setattr(tokenizer, "encode", fail, raising=False)
    with pytest.raises(ValueError, match="no"):
        list(encode_chunks(tokenizer, CHUNKS, workers=2))


@pytest.mark.parametrize("workers", [1, 3])
def test_pieces_of_several_sequences_are_encoded_as_if_each_were_alone(tokenizer, workers):
    names = [f"{number % 3}" for number, _ in enumerate(CHUNKS)]
    found = {name: [] for name in names}
    for name, ids, _ in encode_pieces(tokenizer, zip(names, CHUNKS, strict=True), workers):
        found[name] += ids.tolist()
    for name, ids in found.items():
        own = [chunk for each, chunk in zip(names, CHUNKS, strict=True) if each == name]
        assert ids == list(chain(*map(tokenizer.encode, own)))


def test_a_vocabulary_is_learned_from_every_part_of_a_long_text(monkeypatch):
    chunks = [b"%02d" % number * 50 for number in range(40)]
    held_out = Piece("val", b"not this")

    def read():
        return chain.from_iterable((Piece("train", chunk), held_out) for chunk in chunks)

    split = Corpus("text", 4000, "", {"train": 4000}, read)
    assert "".join(tokenize_text.training_sample(split)).encode() == b"".join(chunks)
    monkeypatch.setattr(tokenize_text, "BPE_SAMPLE_BYTES", 400)
    sample = list(tokenize_text.training_sample(split))
    assert sample == [f"{number:02}" * 5 for number in range(40)]
