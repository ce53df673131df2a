"""Stage `tokenize`: `data/input.txt` or `data/input.jsonl` -> `data/tokens/`.

A text is read in chunks; records are held in memory. Not called `tokenize`, which is a module of
the standard library.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_errors
from stages.lm.core.stage import run_stage
from stages.lm.data.dataset import RECORD_DTYPE, token_dtype, write_meta, write_split
from stages.lm.data.meta import RecordsMeta, SplitMeta, TokenizerMeta
from stages.lm.data.sequence_packing import LEARNED, ids_of
from stages.lm.data.splits import read_chunks, split_bounds
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.recipes import automatic
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.text.conversation import conversation_tokens
from stages.lm.text.interface import Tokenizer
from stages.lm.text.parallel import batches, encode_chunks
from stages.lm.text.records import Record, read_records, split_records
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer, named_tokenizer, train_bpe

BPE_SAMPLE_BYTES = 16 << 20
"""A vocabulary is learned from so many bytes, the same share of each MiB of the training split."""


@dataclass(frozen=True)
class Split:
    """What becomes one array of token ids."""

    size: int
    """Bytes of text."""
    read: Callable[[], Iterable[bytes]] | None = None
    """Reads a text in chunks that no token spans."""
    records: Sequence[Record] = ()

    def texts(self) -> Iterator[str]:
        """Texts to learn a vocabulary from, together about `BPE_SAMPLE_BYTES` long at most.

        Bytes that are not UTF-8 are left out. Each message is a text of its own.
        """
        share = min(1.0, BPE_SAMPLE_BYTES / self.size)
        if self.read:
            for batch in batches(self.read()):
                data = b"".join(batch)
                yield data[: int(len(data) * share)].decode("utf-8", "ignore")
        for record in self.records[:: int(1 / share)]:
            yield from (content for _, content in record.conversation())


def main() -> None:
    """Split the data, learn or load the vocabulary, encode."""
    from_records = paths.RECORDS.exists() and paths.RECORDS.stat().st_size > 0
    size = (paths.RECORDS if from_records else paths.INPUT).stat().st_size
    init_from = load_init_from()
    base = None if init_from == SCRATCH else base_tokenizer(init_from)
    auto = automatic(size, base={} if base is None else tokenizer_settings(base))
    settings = load_section(TokenizeSettings, auto=auto.values)
    for line in auto.lines(TokenizeSettings.SECTION):
        print(line)
    parts = record_splits(settings) if from_records else text_splits(size, settings)
    tokenizer = make_tokenizer(settings, parts["train"]) if base is None else base
    if from_records:
        tokenizer = tokenizer.for_conversations()
    splits = encode_splits(parts, tokenizer)
    if splits["train"].tokens < 2:
        raise UserError(
            f"the training split is {splits['train'].tokens} token long, but training needs two, a "
            "token and the next one; add text, or lower tokenize.vocab_size."
        )
    write_meta(
        paths.TOKENS,
        TokenizerMeta(tokenizer.name, tokenizer.pattern, *astuple(tokenizer.chat)),
        tokenizer.to_text(),
        tokenizer.merges(),
        splits,
        records_meta(parts, size) if from_records else None,
    )
    total = sum(split.tokens for split in splits.values())
    counts = ", ".join(f"{name} {split.tokens:,}" for name, split in splits.items())
    size = sum(part.size for part in parts.values())
    print(
        f"{total:,} tokens ({counts}), {size / total:.2f} bytes a token, "
        f"vocabulary {tokenizer.name} of {tokenizer.vocab_size:,}"
    )


def encode_splits(parts: dict[str, Split], tokenizer: Tokenizer) -> dict[str, SplitMeta]:
    """Write the token ids of each split, with a progress bar."""
    size = sum(part.size for part in parts.values())
    with tqdm(total=size, desc="tokenize", unit="B", unit_scale=True) as bar:
        return {
            name: encode_text(name, part, tokenizer, bar)
            if part.read
            else encode_records(name, part, tokenizer, bar)
            for name, part in parts.items()
        }


def encode_text(name: str, part: Split, tokenizer: Tokenizer, bar: "tqdm[Any]") -> SplitMeta:
    """Write the token ids of a part of a text."""
    assert part.read

    def encoded(chunks: Iterable[bytes]) -> Iterator[np.ndarray]:
        for ids, bytes_done in encode_chunks(tokenizer, chunks):
            yield ids
            bar.update(bytes_done)

    dtype = token_dtype(tokenizer.vocab_size)
    return write_split(paths.TOKENS, name, encoded(part.read()), dtype, part.size)


def encode_records(name: str, part: Split, tokenizer: Tokenizer, bar: "tqdm[Any]") -> SplitMeta:
    """Write the marked token ids of records. A model is scored on answers and a byte for each end.

    Raises:
        UserError: a record cannot be written by the model's chat template.
    """
    sequences = []
    for record in part.records:
        sequences += conversation_tokens(tokenizer, record.conversation())
        bar.update(text_bytes(record))
    scored = sum(
        len(tokenizer.tokens[token]) or 1
        for sequence in sequences
        for token in ids_of(sequence[sequence & LEARNED > 0]).tolist()
    )
    return write_split(paths.TOKENS, name, sequences, RECORD_DTYPE, scored)


def text_bytes(record: Record) -> int:
    """Bytes of what a record says."""
    return sum(len(content.encode()) for _, content in record.conversation())


def records_meta(parts: dict[str, Split], size: int) -> RecordsMeta:
    """What `meta.json` says of the records, from a file of `size` bytes."""
    return RecordsMeta(**{name: len(part.records) for name, part in parts.items()}, bytes=size)


def text_splits(size: int, settings: TokenizeSettings) -> dict[str, Split]:
    """The splits of `data/input.txt`, which has `size` bytes."""
    bounds = split_bounds(size, settings.val_fraction, settings.test_fraction)
    return {
        split: Split(len(part), partial(read_chunks, paths.INPUT, part))
        for split, part in bounds.items()
    }


def record_splits(settings: TokenizeSettings) -> dict[str, Split]:
    """The splits of `data/input.jsonl`."""
    records = read_records(paths.RECORDS)
    splits = split_records(records, settings.val_fraction, settings.test_fraction)
    return {
        split: Split(sum(map(text_bytes, part)), records=part) for split, part in splits.items()
    }


def make_tokenizer(settings: TokenizeSettings, training: Split) -> Tokenizer:
    """The tokenizer that `tokenize.tokenizer` names."""
    name = settings.tokenizer
    if name == "bpe":
        return train_bpe(training.texts(), settings.vocab_size, settings.pattern)
    if not name.endswith(".tiktoken"):
        return named_tokenizer(name)
    path = paths.BASE / name
    with read_errors(path, "put the vocabulary there, or set tokenize.tokenizer to bpe."):
        text = path.read_bytes().decode("ascii", "replace")
    return BytePairTokenizer.from_text(
        text, PATTERNS[settings.pattern], name.removesuffix(".tiktoken")
    )


if __name__ == "__main__":
    run_stage(main)
