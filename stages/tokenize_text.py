"""Stage `tokenize`: `data/input.txt` or `data/input.jsonl` -> `data/tokens/`.

A text takes bounded memory, records are held whole. The module is not called `tokenize`: that
name belongs to the standard library.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError, run_stage
from stages.lm.core.files import sha256_file, write_json, write_text
from stages.lm.data.dataset import token_dtype, tokens_digest, write_merges, write_tokens
from stages.lm.data.splits import SPLITS, read_chunks, split_bounds
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.recipes import automatic
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.text.records import PROMPT_END, RECORD_END, Record, read_records, split_records
from stages.lm.text.tokenizer import PATTERNS, Tokenizer, named_tokenizer, train_bpe

BPE_SAMPLE_BYTES = 32 << 20
"""A vocabulary is learned from this much of the training split, spread evenly over it."""


@dataclass(frozen=True)
class Split:
    """What becomes one array of tokens."""

    read: Callable[[], Iterable[bytes]]
    """In pieces that no token spans."""
    size: int
    """Bytes of all pieces."""
    scored_bytes: int
    """Those that a model is scored on."""
    records: int = 0


def main() -> None:
    """Split, learn or load the vocabulary, encode."""
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
            f"vocabulary of {init_from}: {left_out:,} special tokens are left out, and their rows "
            "of the weights with them; text that looks like one is text"
        )
    dtype = token_dtype(tokenizer.vocab_size)
    splits: dict[str, dict[str, Any]] = {}
    size = sum(part.size for part in parts.values())
    with tqdm(total=size, desc="tokenize", unit="B", unit_scale=True) as bar:
        for split, part in parts.items():

            def encoded(part: Split = part) -> Iterator[list[int]]:
                for chunk in part.read():
                    yield tokenizer.encode(chunk)
                    bar.update(len(chunk))

            path = paths.TOKENS / f"{split}.npy"
            count = write_tokens(path, encoded(), dtype)
            splits[split] = {
                "tokens": count,
                "bytes": part.scored_bytes,
                "sha256": sha256_file(path),
            }
    if splits["train"]["tokens"] < 2:
        raise UserError(
            f"the training split is {splits['train']['tokens']} token long, and "
            "a next token can only be learned from two; add text, or lower tokenize.vocab_size."
        )
    vocabulary = tokenizer.to_text()
    write_text(paths.TOKENS / "tokenizer.tiktoken", vocabulary)
    merges = paths.TOKENS / "merges.npy"
    write_merges(merges, tokenizer.merges())
    meta: dict[str, Any] = {
        "format": "tokens",
        "version": 1,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {"name": tokenizer.name, "pattern": tokenizer.pattern},
        "splits": splits,
        "merges_sha256": sha256_file(merges),
    }
    if from_records:
        ends = {"prompt_end": PROMPT_END, "record_end": RECORD_END}
        meta["records"] = {split: part.records for split, part in parts.items()}
        meta["records"] |= {name: tokenizer.ranks[end] for name, end in ends.items()}
        meta["records"]["bytes"] = paths.RECORDS.stat().st_size
    meta["digest"] = tokens_digest(meta, vocabulary)
    write_json(paths.TOKENS / "meta.json", meta)
    total = sum(split["tokens"] for split in splits.values())
    counts = ", ".join(f"{split} {splits[split]['tokens']:,}" for split in SPLITS)
    print(
        f"{total:,} tokens ({counts}), {size / total:.2f} bytes a token, "
        f"vocabulary {tokenizer.name} of {tokenizer.vocab_size:,}"
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
    try:
        text = path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"params.yaml: tokenize.tokenizer is {name!r}, but {paths.shown(path)} cannot be read "
            f"({error}); put the vocabulary file there, or set tokenize.tokenizer to bpe."
        ) from error
    return Tokenizer.from_text(text, PATTERNS[settings.pattern], name.removesuffix(".tiktoken"))


def training_sample(training: Split) -> Iterator[str]:
    """Text to learn a vocabulary from.

    Bytes that are not UTF-8 teach nothing and are left out; in records they end a text.
    """
    # Of every `wanted` chunks take the first, so that the sample is spread over the split.
    wanted = -(-training.size // BPE_SAMPLE_BYTES)
    for chunk in islice(training.read(), 0, None, wanted):
        for text in chunk.replace(PROMPT_END, RECORD_END).split(RECORD_END):
            yield text.decode("utf-8", "ignore")


if __name__ == "__main__":
    run_stage(main)
