"""Stage `tokenize`: `data/input.txt` or `data/input.jsonl` -> `data/tokens/`.

A text is read in chunks; records are held in memory. Not called `tokenize`, which is a module of
the standard library.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_errors
from stages.lm.core.stage import run_stage
from stages.lm.data.dataset import write_meta, write_split
from stages.lm.data.meta import RecordsMeta, SplitMeta, TokenizerMeta
from stages.lm.data.splits import read_chunks, split_bounds
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.recipes import automatic
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.text.parallel import batches, encode_chunks
from stages.lm.text.records import PROMPT_END, RECORD_END, Record, read_records, split_records
from stages.lm.text.tokenizer import PATTERNS, Tokenizer, named_tokenizer, train_bpe

BPE_SAMPLE_BYTES = 16 << 20
"""A vocabulary is learned from so many bytes, the same share of each MiB of the training split."""


@dataclass(frozen=True)
class Split:
    """The bytes that become one array of token ids."""

    read: Callable[[], Iterable[bytes]]
    """Reads them in chunks that no token spans."""
    size: int
    """Bytes of all chunks."""
    scored_bytes: int
    """Bytes that a model is scored on."""
    records: int = 0
    """Number of records; 0 of a text."""


def main() -> None:
    """Split the data, learn or load the vocabulary, encode."""
    from_records = paths.RECORDS.exists() and paths.RECORDS.stat().st_size > 0
    size = (paths.RECORDS if from_records else paths.INPUT).stat().st_size
    init_from = load_init_from()
    base, left_out = (None, 0) if init_from == SCRATCH else base_tokenizer(init_from)
    auto = automatic(size, base={} if base is None else tokenizer_settings(base))
    settings = load_section(TokenizeSettings, auto=auto.values)
    for line in auto.lines(TokenizeSettings.SECTION):
        print(line)
    parts = record_splits(settings) if from_records else text_splits(size, settings)
    tokenizer = make_tokenizer(settings, parts["train"]) if base is None else base
    if left_out:
        print(
            f"vocabulary of {init_from}: {left_out:,} special tokens and their rows of the weights "
            "are left out; text that looks like a special token is encoded as text"
        )
    splits = encode_splits(parts, tokenizer)
    if splits["train"].tokens < 2:
        raise UserError(
            f"the training split is {splits['train'].tokens} token long, but training needs two, a "
            "token and the next one; add text, or lower tokenize.vocab_size."
        )
    write_meta(
        paths.TOKENS,
        TokenizerMeta(tokenizer.name, tokenizer.pattern),
        tokenizer.to_text(),
        tokenizer.merges(),
        splits,
        records_meta(parts, tokenizer, size) if from_records else None,
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

        def encoded(part: Split) -> Iterator[np.ndarray]:
            for ids, bytes_done in encode_chunks(tokenizer, part.read()):
                yield ids
                bar.update(bytes_done)

        return {
            name: write_split(
                paths.TOKENS, name, encoded(part), tokenizer.vocab_size, part.scored_bytes
            )
            for name, part in parts.items()
        }


def records_meta(parts: dict[str, Split], tokenizer: Tokenizer, size: int) -> RecordsMeta:
    """What `meta.json` says of the records, from a file of `size` bytes."""
    return RecordsMeta(
        **{name: part.records for name, part in parts.items()},
        prompt_end=tokenizer.ranks[PROMPT_END],
        record_end=tokenizer.ranks[RECORD_END],
        bytes=size,
    )


def text_splits(size: int, settings: TokenizeSettings) -> dict[str, Split]:
    """The splits of `data/input.txt`, which has `size` bytes."""
    bounds = split_bounds(size, settings.val_fraction, settings.test_fraction)
    return {
        split: Split(partial(read_chunks, paths.INPUT, part), len(part), len(part))
        for split, part in bounds.items()
    }


def record_splits(settings: TokenizeSettings) -> dict[str, Split]:
    """The splits of `data/input.jsonl`."""
    records = read_records(paths.RECORDS)
    splits = split_records(records, settings.val_fraction, settings.test_fraction)
    return {
        split: Split(
            read=partial(map, Record.data, part),
            size=sum(len(record.data()) for record in part),
            scored_bytes=sum(record.scored_bytes() for record in part),
            records=len(part),
        )
        for split, part in splits.items()
    }


def make_tokenizer(settings: TokenizeSettings, training: Split) -> Tokenizer:
    """The tokenizer that `tokenize.tokenizer` names."""
    name = settings.tokenizer
    if name == "bpe":
        return train_bpe(training_sample(training), settings.vocab_size, settings.pattern)
    if not name.endswith(".tiktoken"):
        return named_tokenizer(name)
    path = paths.BASE / name
    with read_errors(path, "put the vocabulary there, or set tokenize.tokenizer to bpe."):
        text = path.read_bytes().decode("ascii", "replace")
    return Tokenizer.from_text(text, PATTERNS[settings.pattern], name.removesuffix(".tiktoken"))


def training_sample(training: Split) -> Iterator[str]:
    """Texts to learn a vocabulary from; bytes that are not UTF-8 are left out.

    Prompts and completions of records are texts of their own.
    """
    share = min(1.0, BPE_SAMPLE_BYTES / training.size)
    for batch in batches(training.read()):
        data = b"".join(batch)
        sample = data[: int(len(data) * share)].replace(PROMPT_END, RECORD_END)
        for text in sample.split(RECORD_END):
            yield text.decode("utf-8", "ignore")


if __name__ == "__main__":
    run_stage(main)
