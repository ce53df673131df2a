"""Stage `tokenize`: `data/input.txt` -> `data/tokens/`, in bounded memory.

The module is not called `tokenize`: that name belongs to the standard library.
"""

from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from stages.lm import paths
from stages.lm.base_tokenizer import base_tokenizer, tokenizer_values
from stages.lm.data import (
    SPLITS,
    read_chunks,
    split_bounds,
    token_dtype,
    tokens_digest,
    write_merges,
    write_tokens,
)
from stages.lm.errors import UserError, run_stage
from stages.lm.files import sha256_file, write_json, write_text
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.recipes import automatic
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.tokenizer import PATTERNS, Tokenizer, named_tokenizer, train_bpe

BPE_SAMPLE_BYTES = 32 << 20
"""A vocabulary is learned from this much of the training split, spread evenly over it."""


def main() -> None:
    """Split, learn or load the vocabulary, encode."""
    size = paths.INPUT.stat().st_size
    init_from = load_init_from()
    base, left_out = (None, 0) if init_from == SCRATCH else base_tokenizer(init_from)
    auto = automatic(size, base={} if base is None else tokenizer_values(base))
    settings = load_section(TokenizeSettings, auto=auto.values)
    for line in auto.lines(TokenizeSettings.SECTION):
        print(line)
    bounds = split_bounds(size, settings.val_fraction, settings.test_fraction)
    tokenizer = make_tokenizer(settings, bounds["train"]) if base is None else base
    if left_out:
        print(
            f"vocabulary of {init_from}: {left_out:,} special tokens are left out, and their rows "
            "of the weights with them; text that looks like one is text"
        )
    dtype = token_dtype(tokenizer.vocab_size)
    splits: dict[str, dict[str, Any]] = {}
    with tqdm(total=size, desc="tokenize", unit="B", unit_scale=True) as bar:
        for split in SPLITS:

            def encoded(part: range = bounds[split]) -> Iterator[list[int]]:
                for chunk in read_chunks(paths.INPUT, part):
                    yield tokenizer.encode(chunk)
                    bar.update(len(chunk))

            path = paths.TOKENS / f"{split}.npy"
            count = write_tokens(path, encoded(), dtype)
            splits[split] = {
                "tokens": count,
                "bytes": len(bounds[split]),
                "sha256": sha256_file(path),
            }
    if splits["train"]["tokens"] < 2:
        raise UserError(
            f"the training split of data/input.txt is {splits['train']['tokens']} token long, and "
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
    meta["digest"] = tokens_digest(meta, vocabulary)
    write_json(paths.TOKENS / "meta.json", meta)
    total = sum(split["tokens"] for split in splits.values())
    counts = ", ".join(f"{split} {splits[split]['tokens']:,}" for split in SPLITS)
    print(
        f"{total:,} tokens ({counts}), {size / total:.2f} bytes a token, "
        f"vocabulary {tokenizer.name} of {tokenizer.vocab_size:,}"
    )


def make_tokenizer(settings: TokenizeSettings, training: range) -> Tokenizer:
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


def training_sample(training: range) -> Iterator[str]:
    """Text to learn a vocabulary from; bytes that are not UTF-8 teach nothing and are left out."""
    for place, chunk in enumerate(read_chunks(paths.INPUT, training)):
        # Of every `wanted` chunks take the first, so that the sample is spread over the split.
        wanted = -(-len(training) // BPE_SAMPLE_BYTES)
        if place % wanted == 0:
            yield chunk.decode("utf-8", "ignore")


if __name__ == "__main__":
    run_stage(main)
