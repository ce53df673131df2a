"""`meta.json` beside the token arrays: what they were made of and how, with a digest of each file.

The dataclasses hold the same keys as the JSON. The checkpoint keeps them as its provenance.
"""

import base64
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.files import read_json, write_json


@dataclass(frozen=True)
class TokenizerMeta:
    """Which tokenizer made the ids; its vocabulary is a file of its own."""

    name: str
    pattern: str
    """The regular expression that cuts text before merging; empty where that is in the vocabulary,
    a tokenizer.json."""
    template: str = ""
    """The chat template of conversations; empty of a text."""
    bos_token: str = ""
    """Name of the token that the template may put first."""
    eos_token: str = ""
    """Name of the token that ends a text or an answer."""

    @property
    def file_name(self) -> str:
        """What the vocabulary's file is called."""
        return "tokenizer.tiktoken" if self.pattern else "tokenizer.json"

    def stored(self, vocabulary: str) -> dict[str, str]:
        """What a model file holds of the tokenizer."""
        if not self.pattern:  # it would be half of a small model's file
            vocabulary = base64.b64encode(zlib.compress(vocabulary.encode(), 9)).decode()
        return asdict(self) | {"vocabulary": vocabulary}


@dataclass(frozen=True)
class SplitMeta:
    """One of train, val and test."""

    tokens: int
    bytes: int
    """Those a model is scored on: of a text all, of records the completions. An end counts one."""
    sha256: str
    """Of the split's `.npy` file."""


@dataclass(frozen=True)
class RecordsMeta:
    """What only data made of records have."""

    train: int
    """Number of records, as in the next two."""
    val: int
    test: int
    bytes: int
    """Size of the files of records."""
    long: int
    """99 % of the records have at most so many tokens, both marks included."""


@dataclass(frozen=True)
class DocumentsMeta:
    """What only data made of documents have."""

    train: int
    """Number of documents that end in this split, as in the next two."""
    val: int
    test: int
    end: int
    """Id of the token before and after each document. Every split begins with it."""
    bytes: int
    """Size of all documents."""
    long: int
    """99 % of the documents have at most so many tokens, their end included."""


@dataclass(frozen=True)
class TokensMeta:
    """All that `meta.json` holds but its digest, which `digest` computes."""

    vocab_size: int
    tokenizer: TokenizerMeta
    splits: dict[str, SplitMeta]
    vocabulary_sha256: str
    """Of `TokenizerMeta.file_name`."""
    merges_sha256: str
    """Of `merges.npy`."""
    records: RecordsMeta | None = None
    documents: DocumentsMeta | None = None
    """Both are None where the data are a text."""

    def to_json(self) -> dict[str, Any]:
        """The plain values that `meta.json` and a checkpoint's provenance hold."""
        return asdict(self) | {"digest": self.digest()}

    def digest(self) -> str:
        """SHA-256 of everything above, and so of the tokens, the merges and the vocabulary."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Write `meta.json`."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "TokensMeta":
        """Read `meta.json` and check it against its digest.

        Raises:
            UserError: it is missing or no JSON.
            ValueError, KeyError, TypeError, AttributeError: it is not what was written.
        """
        values = read_json(path)
        digest = values.pop("digest")
        values["tokenizer"] = TokenizerMeta(**values["tokenizer"])
        values["splits"] = {name: SplitMeta(**split) for name, split in values["splits"].items()}
        values["records"] = RecordsMeta(**values["records"]) if values["records"] else None
        documents = values["documents"]
        values["documents"] = DocumentsMeta(**documents) if documents else None
        meta = cls(**values)
        if meta.digest() != digest:
            raise ValueError(f"{path.name} is not what was written")
        return meta
