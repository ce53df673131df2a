"""The output of `tokenize` on disk: token arrays written in chunks, memory-mapped on reading."""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..core.errors import UserError
from ..core.files import atomic_writer, read_errors, sha256_file, write_text
from ..core.paths import shown
from .document_rows import document_rows
from .lengths import Lengths
from .meta import DocumentsMeta, RecordsMeta, SplitMeta, TokenizerMeta, TokensMeta
from .sequence_packing import pack, scored_tokens
from .splits import SPLITS


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest of uint16 and uint32 that holds every id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass
class TokenFile:
    """A one-dimensional `.npy` of ids that is being written; made by `token_file`."""

    file: BinaryIO
    dtype: np.dtype[Any]
    count: int = 0
    """Ids written so far."""

    def append(self, ids: list[int] | np.ndarray) -> None:
        """Write more ids."""
        self.file.write(np.asarray(ids, dtype=self.dtype).tobytes())
        self.count += len(ids)


@contextmanager
def token_file(path: Path, dtype: np.dtype[Any]) -> Iterator[TokenFile]:
    """Write ids to a one-dimensional `.npy` as they come."""
    with atomic_writer(path) as file:
        header = _npy_header(dtype, 0)
        file.write(header)
        yield (tokens := TokenFile(file, dtype))
        final = _npy_header(dtype, tokens.count)
        assert len(final) == len(header), "the .npy header grew over the first tokens"
        file.seek(0)
        file.write(final)


def _npy_header(dtype: np.dtype[Any], count: int) -> bytes:
    body = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + body.ljust(117).encode() + b"\n"


def split_meta(folder: Path, split: str, tokens: int, size: int) -> SplitMeta:
    """What `meta.json` says of a written split, which scores `size` bytes of text."""
    return SplitMeta(tokens, size, sha256_file(folder / f"{split}.npy"))


def write_meta(
    folder: Path,
    tokenizer: TokenizerMeta,
    vocabulary: str,
    merges: list[tuple[int, int]],
    splits: dict[str, SplitMeta],
    records: RecordsMeta | None = None,
    documents: DocumentsMeta | None = None,
) -> None:
    """Write what belongs to the ids: `tokenizer.tiktoken`, `merges.npy` and `meta.json`.

    `merges` are, for each id, the two ids that it was merged from, or itself twice.
    """
    vocabulary_path, merges_path = folder / "tokenizer.tiktoken", folder / "merges.npy"
    write_text(vocabulary_path, vocabulary)
    ids = list(chain.from_iterable(merges))
    with token_file(merges_path, token_dtype(len(merges))) as file:
        file.append(ids)
    TokensMeta(
        vocab_size=len(merges),
        tokenizer=tokenizer,
        splits=splits,
        vocabulary_sha256=sha256_file(vocabulary_path),
        merges_sha256=sha256_file(merges_path),
        records=records,
        documents=documents,
    ).save(folder / "meta.json")


@dataclass(frozen=True)
class TokenData:
    """The output of `tokenize`, opened: one memory-mapped array of ids per split."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    merges: np.ndarray
    """(vocabulary, 2): the two tokens that each was merged from, or itself twice."""
    meta: TokensMeta
    vocabulary: str
    """`tokenizer.tiktoken`, to be kept beside weights that were trained on these ids."""

    @classmethod
    def load(cls, folder: Path) -> "TokenData":
        """Open the arrays and check every file against `meta.json`.

        Raises:
            UserError: a file is missing or its bytes are not those that were written.
        """
        try:
            meta = TokensMeta.load(folder / "meta.json")
            splits = {
                split: _read_ids(folder / f"{split}.npy", meta.splits[split].sha256, meta)
                for split in SPLITS
            }
            merges = _read_merges(folder / "merges.npy", meta)
            path = folder / "tokenizer.tiktoken"
            _check_digest(path, meta.vocabulary_sha256)
            with read_errors(path):
                vocabulary = path.read_text(encoding="ascii")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the tokens in {shown(folder)} are damaged ({error}); move that folder elsewhere "
                "and run `dvc repro` again."
            ) from error
        return cls(**splits, merges=merges, meta=meta, vocabulary=vocabulary)

    @property
    def records(self) -> RecordsMeta | None:
        """Of data made of records: how many there are, and what ends them. None for a text."""
        return self.meta.records

    @property
    def record_ends(self) -> tuple[int, int]:
        """The ids of the tokens that end a prompt and a record."""
        assert self.records
        return self.records.prompt_end, self.records.record_end

    @property
    def documents(self) -> DocumentsMeta | None:
        """Of data made of documents: how many there are, and what ends them. None otherwise."""
        return self.meta.documents

    def document_rows(self, split: str, context: int) -> np.ndarray:
        """The rows of a split of documents: see `document_rows`."""
        assert self.documents
        return document_rows(getattr(self, split), self.documents.end, context)

    def packed(self, split: str, context: int) -> tuple[np.ndarray, int]:
        """The records of a split in rows, and how many were too long: see `pack`."""
        return pack(getattr(self, split), self.record_ends[1], context, split)

    def scored_tokens(self, split: str) -> int:
        """Tokens that a model is scored on: all, or those of completions and their ends."""
        tokens = getattr(self, split)
        if self.records:
            return scored_tokens(tokens, *self.record_ends)
        return len(tokens) - bool(self.documents)  # the first stands before the first document

    def scored_bytes(self, split: str, tokens: int) -> float:
        """Bytes that so many scored tokens stand for, at the split's mean bytes per token."""
        return self.meta.splits[split].bytes * tokens / self.scored_tokens(split)

    @property
    def lengths(self) -> Lengths | None:
        """How long documents or records are; None of a text."""
        if self.records:
            return Lengths("records", self.records.long)
        return Lengths("documents", self.documents.long) if self.documents else None

    def token_bytes(self) -> list[bytes]:
        """The bytes of each token, by id."""
        return [base64.b64decode(line.split()[0]) for line in self.vocabulary.splitlines()]

    def digest(self) -> str:
        """One digest for all the tokens and the vocabulary."""
        return self.meta.digest()

    def text_bytes(self) -> int:
        """Size of what the tokens come from."""
        if whole := self.records or self.documents:
            return whole.bytes
        return sum(split.bytes for split in self.meta.splits.values())

    def preceding(self, split: str, count: int) -> np.ndarray:
        """At most `count` tokens that stand right before a split, its first token's context."""
        earlier = [getattr(self, name) for name in SPLITS[: SPLITS.index(split)]]
        tails = [array[-count:] for array in earlier] if count else []
        return np.concatenate([np.empty(0, self.train.dtype), *tails])[-count:]


def _read_ids(path: Path, digest: str, meta: TokensMeta) -> np.ndarray:
    _check_digest(path, digest)
    with read_errors(path):
        ids: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    if ids.ndim != 1 or ids.max(initial=0) >= meta.vocab_size:
        raise ValueError(f"{shown(path)} holds ids beyond the vocabulary")
    return ids


def _read_merges(path: Path, meta: TokensMeta) -> np.ndarray:
    _check_digest(path, meta.merges_sha256)
    with read_errors(path):
        merges: np.ndarray = np.load(path, allow_pickle=False).astype(np.int64)
    merges = merges.reshape(meta.vocab_size, 2)
    # Both ids are lower than the token's own, or both are its own: so undoing merges ends.
    own = np.arange(len(merges))[:, None]
    if not ((merges < own) | (merges == own).all(axis=1, keepdims=True)).all():
        raise ValueError(f"{shown(path)} holds merges that never end")
    return merges


def _check_digest(path: Path, digest: str) -> None:
    if sha256_file(path) != digest:
        raise ValueError(f"{shown(path)} is not what was written")
