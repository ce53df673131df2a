"""The bytes that a loss is divided by are those of the tokens that were scored."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from stages.lm.evaluation.held_out import file_losses, scored_part
from stages.lm.inference.loading import LoadedModel
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer

BYTES = {bytes([byte]): byte for byte in range(256)}
THE = 256


@pytest.fixture(scope="module")
def tokenizer():
    """The bytes and one longer token."""
    return BytePairTokenizer(BYTES | {b"the": THE}, PATTERNS["gpt-2"], "own")


@pytest.mark.parametrize(
    ("max_bytes", "tokens", "size"),
    [(1, 1, 3), (3, 1, 3), (4, 2, 4), (5, 2, 4), (7, 3, 7), (8, 3, 7), (100, 3, 7)],
)
def test_a_part_ends_with_the_last_token_that_fits_and_has_at_least_one(
    tokenizer, max_bytes, tokens, size
):
    split = np.array([THE, ord("n"), THE])
    meta = SimpleNamespace(splits={"val": SimpleNamespace(bytes=7)})
    data = SimpleNamespace(val=split, meta=meta, documents=None)
    part = scored_part(data, "val", tokenizer, max_bytes)
    assert part.tokens.tolist() == split[:tokens].tolist() and part.bytes == size


def test_the_first_token_of_another_text_counts_neither_as_loss_nor_as_bytes(
    tokenizer, initialised_model, machine, tmp_path
):
    uniform = initialised_model(vocab_size=tokenizer.vocab_size)  # each of 257 tokens as likely
    loaded = LoadedModel(uniform.config, lambda: uniform, tokenizer, "float32", {}, 0)
    path = tmp_path / "also.txt"
    path.write_text("the12")
    settings = SimpleNamespace(max_bytes=5, min_context=0)
    losses = file_losses({"float": loaded}, path, machine, settings)
    assert losses["float"]["bits_per_byte"] == pytest.approx(math.log2(257), abs=1e-5)
