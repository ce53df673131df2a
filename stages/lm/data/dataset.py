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
from .sequence_packing import LEARNED, ids_of, pack
from .splits import SPLITS

RECORD_DTYPE = np.dtype("<u4")
"""Of ids with the marks of `sequence_packing`."""


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
    """Write what belongs to the ids: the vocabulary, `merges.npy` and `meta.json`.

    `merges` are, for each id, the two ids that it was merged from, or itself twice.
    """
    vocabulary_path, merges_path = folder / tokenizer.file_name, folder / "merges.npy"
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
    """The output of `tokenize`, opened: one memory-mapped array of ids per split.

    Those of records carry the marks of `sequence_packing`.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    merges: np.ndarray
    """(vocabulary, 2): the two tokens that each was merged from, or itself twice."""
    meta: TokensMeta
    vocabulary: str
    """The text of its file, to be kept beside weights that were trained on these ids."""

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
            path = folder / meta.tokenizer.file_name
            _check_digest(path, meta.vocabulary_sha256)
            with read_errors(path):
                vocabulary = path.read_text(encoding="utf-8")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"the tokens in {shown(folder)} are damaged ({error}); move that folder elsewhere "
                "and run `dvc repro` again."
            ) from error
        return cls(**splits, merges=merges, meta=meta, vocabulary=vocabulary)

    @property
    def records(self) -> RecordsMeta | None:
        """Of data made of records: how many there are. None otherwise."""
        return self.meta.records

    def ids(self, split: str) -> np.ndarray:
        """The token ids of a split, without the marks that those of records have."""
        tokens: np.ndarray = getattr(self, split)
        return ids_of(tokens) if self.records else tokens

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
        return pack(getattr(self, split), context, split)

    def scored_tokens(self, split: str) -> int:
        """Tokens that a model is scored on: all, or those of answers and their ends."""
        tokens = getattr(self, split)
        if self.records:
            return int(np.count_nonzero(tokens & LEARNED))
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
        """The bytes of each token, by id, of a vocabulary that is no tokenizer.json."""
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
    if ids.ndim != 1 or (ids_of(ids) if meta.records else ids).max(initial=0) >= meta.vocab_size:
        raise ValueError(f"{shown(path)} holds ids beyond the vocabulary")
    return ids


def _read_merges(path: Path, meta: TokensMeta) -> np.ndarray:
    _check_digest(path, meta.merges_sha256)
    with read_errors(path):
        merges: np.ndarray = np.load(path, allow_pickle=False).astype(np.int64)
    merges = merges.reshape(meta.vocab_size, 2)
    if merges.size and merges.max() >= len(merges):
        raise ValueError(f"{shown(path)} holds merges of no tokens")
    # Undoing merges ends at tokens that were merged from none.
    ends = (merges == np.arange(len(merges))[:, None]).all(axis=1)
    while (further := ends | ends[merges].all(axis=1)).sum() > ends.sum():
        ends = further
    if not ends.all():
        raise ValueError(f"{shown(path)} holds merges that never end")
    return merges


def _check_digest(path: Path, digest: str) -> None:
    if sha256_file(path) != digest:
        raise ValueError(f"{shown(path)} is not what was written")
