"""The data path: text in byte splits -> token arrays on disk -> batches of windows.

A window is `context` tokens and the tokens that follow each of them. Knows nothing about how
text becomes tokens, nor about models.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from .errors import UserError
from .files import atomic_writer, read_json, sha256_file
from .paths import shown
from .record_rows import pack, scored_tokens

SPLITS = ("train", "val", "test")
"""In the order in which they lie in the text."""

CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 2 << 20

# A newline between a character that is not white space and one that is neither white space nor
# "/": no pattern in `tokenizer.PATTERNS` makes a token across the point after it. The classes are
# of bytes, and leave out every byte that can end or begin a white-space character in UTF-8.
_SAFE_CUT = re.compile(
    rb"(?<=[!-~\xab-\xae\xb0-\xbf]\n)(?=[!-.0-~\xc3-\xdf\xe4-\xf4]|\xe3[\x81-\xbf])"
)


def split_bounds(size: int, val_fraction: float, test_fraction: float) -> dict[str, range]:
    """Where each split of a text of `size` bytes lies: train first, then val, then test."""
    train_end = int(size * (1 - val_fraction - test_fraction) + 1e-6)
    test_start = max(train_end, int(size * (1 - test_fraction) + 1e-6))
    return {
        "train": range(0, train_end),
        "val": range(train_end, test_start),
        "test": range(test_start, size),
    }


def read_chunks(path: Path, part: range) -> Iterator[bytes]:
    """The bytes of `part` of a file, about a MiB at a time, cut where no token can span.

    Text without such a place (a line of more than 2 MiB) is cut between two characters.
    """
    with path.open("rb") as file:
        file.seek(part.start)
        left, held = len(part), b""
        while left:
            fresh = file.read(min(CHUNK_BYTES, left))
            if not fresh:
                raise UserError(f"{shown(path)} became shorter while it was read; try again.")
            left -= len(fresh)
            held += fresh
            cut = 0
            for match in _SAFE_CUT.finditer(held, max(0, len(held) - len(fresh) - 4)):
                cut = match.start()
            if not cut and len(held) >= MAX_CHUNK_BYTES:
                cut = len(held) - 1
                while cut > len(held) - 4 and held[cut] & 0xC0 == 0x80:
                    cut -= 1
            if cut and left:
                yield held[:cut]
                held = held[cut:]
        if held:
            yield held


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_tokens(path: Path, chunks: Iterable[list[int]], dtype: np.dtype[Any]) -> int:
    """Write ids to a one-dimensional `.npy` as they come; returns how many there were."""
    count = 0
    with atomic_writer(path) as file:
        header = _npy_header(dtype, 0)
        file.write(header)
        for chunk in chunks:
            file.write(np.asarray(chunk, dtype=dtype).tobytes())
            count += len(chunk)
        final = _npy_header(dtype, count)
        assert len(final) == len(header), "the .npy header grew over the first tokens"
        file.seek(0)
        file.write(final)
    return count


def _npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    body = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + body.ljust(117).encode() + b"\n"


def tokens_digest(meta: dict[str, Any], vocabulary: str) -> str:
    """SHA-256 over all that `meta.json` says of the tokens, their digests, and the vocabulary."""
    rest = {key: value for key, value in meta.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True) + vocabulary
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class TokenData:
    """The output of `tokenize`, opened: one memory-mapped array of ids a split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    merges: np.ndarray
    """(vocabulary, 2): the two tokens that each was merged from, or itself twice."""
    meta: dict[str, Any]
    """`meta.json`: the vocabulary's size and pattern, tokens, bytes and digest of each split."""
    vocabulary: str
    """`tokenizer.tiktoken`, to be kept beside weights that were trained on these ids."""

    @classmethod
    def load(cls, folder: Path) -> "TokenData":
        """Open the arrays and check them against `meta.json`.

        Raises:
            UserError: a file is missing or its bytes are not those that were written.
        """
        meta = read_json(folder / "meta.json")
        arrays = {}
        try:
            for split in SPLITS:
                path = folder / f"{split}.npy"
                if sha256_file(path) != meta["splits"][split]["sha256"]:
                    raise ValueError(f"{shown(path)} is not what was written")
                arrays[split] = np.load(path, mmap_mode="r", allow_pickle=False)
                if arrays[split].ndim != 1 or arrays[split].max(initial=0) >= meta["vocab_size"]:
                    raise ValueError(f"{shown(path)} holds ids beyond the vocabulary")
            merges = read_merges(folder / "merges.npy", meta)
            vocabulary = (folder / "tokenizer.tiktoken").read_text(encoding="ascii")
            if tokens_digest(meta, vocabulary) != meta["digest"]:
                raise ValueError("meta.json or tokenizer.tiktoken is not what was written")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the tokens in {shown(folder)} cannot be used ({error}); they are missing or "
                f"damaged. Remove {shown(folder)} and run `dvc repro`."
            ) from error
        return cls(**arrays, merges=merges, meta=meta, vocabulary=vocabulary)

    @property
    def records(self) -> dict[str, int] | None:
        """Of data made of records: how many each split has, `bytes` of their file, and the ids of
        the tokens `prompt_end` and `record_end`."""
        return self.meta.get("records")

    @property
    def record_ends(self) -> tuple[int, int]:
        """The ids of the tokens that end a prompt and a record."""
        assert self.records
        return self.records["prompt_end"], self.records["record_end"]

    def packed(self, split: str, context: int) -> tuple[np.ndarray, int]:
        """The records of a split in rows, and how many were too long: see `record_rows.pack`."""
        return pack(getattr(self, split), self.record_ends[1], context, split)

    def scored_tokens(self, split: str) -> int:
        """Tokens that a model is scored on: all, or those of completions and their ends."""
        tokens = getattr(self, split)
        return scored_tokens(tokens, *self.record_ends) if self.records else len(tokens)

    def scored_bytes(self, split: str, tokens: int) -> float:
        """Bytes of so many scored tokens of a split, as if all were alike."""
        return self.meta["splits"][split]["bytes"] * tokens / self.scored_tokens(split)

    def digest(self) -> str:
        """One digest for all the tokens and the vocabulary."""
        return str(self.meta["digest"])

    def text_bytes(self) -> int:
        """Bytes of the file that the tokens come from."""
        if self.records:
            return int(self.records["bytes"])
        return sum(int(split["bytes"]) for split in self.meta["splits"].values())

    def preceding(self, split: str, count: int) -> np.ndarray:
        """At most `count` tokens that stand right before a split, its first token's context."""
        earlier = [getattr(self, name) for name in SPLITS[: SPLITS.index(split)]]
        tails = [array[-count:] for array in earlier] if count else []
        return np.concatenate([np.empty(0, self.train.dtype), *tails])[-count:]


def write_merges(path: Path, merges: list[tuple[int, int]]) -> None:
    """Write the two tokens that each was merged from, (vocabulary, 2), as one row of ids."""
    write_tokens(path, [[part for pair in merges for part in pair]], token_dtype(len(merges)))


def read_merges(path: Path, meta: dict[str, Any]) -> np.ndarray:
    """What `write_merges` wrote.

    Raises:
        ValueError: the file's bytes are others.
    """
    if sha256_file(path) != meta["merges_sha256"]:
        raise ValueError(f"{shown(path)} is not what was written")
    merges = np.load(path, allow_pickle=False).astype(np.int64).reshape(meta["vocab_size"], 2)
    # Ids lower than the token's own, or its own twice: what is taken apart comes to an end.
    own = np.arange(len(merges))[:, None]
    if not ((merges < own) | (merges == own).all(axis=1, keepdims=True)).all():
        raise ValueError(f"{shown(path)} holds merges that never end")
    return merges


@dataclass(frozen=True)
class WindowOrder:
    """Which windows of a split make up the batch of each step; a pure function of (seed, step).

    Every epoch covers the whole split once, in its own random order, cut at its own random
    offset. Epochs follow each other without a gap: every batch is full, and a batch may end one
    epoch and begin the next.
    """

    tokens: int
    """Length of the split."""
    context: int
    batch: int
    """Windows in a step."""
    seed: int

    @property
    def length(self) -> int:
        """Tokens in a window: `context`, or all a shorter split has."""
        return min(self.context, self.tokens - 1)

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch: one more than fit, because the offset cuts the outer two."""
        return -(-(self.tokens - 2) // self.length) + 1

    def steps(self, epochs: int) -> int:
        """Steps after which `epochs` epochs are over."""
        return -(-epochs * self.per_epoch // self.batch)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each window of an epoch, in order of the text."""
        offset = random.integers(1, self.length, endpoint=True)
        starts = offset + self.length * np.arange(-1, self.per_epoch - 1)
        # The outer two windows reach over the split's ends; they are moved inside.
        return np.clip(starts, 0, self.tokens - 1 - self.length)

    def batch_starts(self, step: int) -> np.ndarray:
        """First token of each window of a step (counted from 0), shape (batch,)."""
        first = step * self.batch
        parts = []
        while (wanted := (step + 1) * self.batch - first) > 0:
            epoch, place = divmod(first, self.per_epoch)
            parts.append(epoch_starts(self, epoch)[place : place + wanted])
            first += len(parts[-1])
        return np.concatenate(parts)


@dataclass(frozen=True)
class RowOrder(WindowOrder):
    """The same for a split that is cut into rows of `context` + 1 tokens once and for all."""

    @property
    def per_epoch(self) -> int:
        """Rows in an epoch."""
        return self.tokens // (self.context + 1)

    def starts(self, random: np.random.Generator) -> np.ndarray:
        """First token of each row."""
        return (self.context + 1) * np.arange(self.per_epoch)


@lru_cache(maxsize=2)
def epoch_starts(order: WindowOrder, epoch: int) -> np.ndarray:
    """First token of each window of an epoch, in order of training."""
    random = np.random.Generator(np.random.Philox(key=[order.seed, epoch]))
    return random.permutation(order.starts(random))


def gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Windows and what follows them: int64 of shape (len(starts), length + 1)."""
    return tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64)


def split_tokens(
    rows: np.ndarray, merges: np.ndarray, share: float, random: np.random.Generator
) -> np.ndarray:
    """The same text in other tokens: about a `share` of them is taken apart, and their parts again.

    Each merge that made a token is undone with that probability (Sims et al. 2025, StochasTok, as a
    kin of BPE-dropout, Provilkov et al. 2020). rows (B, T) and the result have the same shape: what
    no longer fits is cut off.
    """
    length = rows.shape[1]
    split = []
    for row in rows:
        whole = np.zeros(length, dtype=bool)  # tokens that have had their chance
        while not whole.all():
            undone = ~whole & (merges[row, 0] != row) & (random.random(len(row)) < share)
            ends = np.cumsum(1 + undone)[undone]
            whole = np.ones(len(row) + len(ends), dtype=bool)
            whole[ends - 1] = whole[ends - 2] = False
            parts = merges[row[undone]]
            row = np.repeat(row, 1 + undone)
            row[ends - 2], row[ends - 1] = parts[:, 0], parts[:, 1]
            row, whole = row[:length], whole[:length]
        split.append(row)
    return np.stack(split)
