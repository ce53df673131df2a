"""The output of `tokenize` on disk: token arrays written in chunks, memory-mapped on reading."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import atomic_writer, read_json, sha256_file
from ..core.paths import shown
from .sequence_packing import pack, scored_tokens
from .splits import SPLITS


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
        size: int = self.meta["splits"][split]["bytes"]
        return size * tokens / self.scored_tokens(split)

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
    merges: np.ndarray = np.load(path, allow_pickle=False).astype(np.int64)
    merges = merges.reshape(meta["vocab_size"], 2)
    # Ids lower than the token's own, or its own twice: what is taken apart comes to an end.
    own = np.arange(len(merges))[:, None]
    if not ((merges < own) | (merges == own).all(axis=1, keepdims=True)).all():
        raise ValueError(f"{shown(path)} holds merges that never end")
    return merges
