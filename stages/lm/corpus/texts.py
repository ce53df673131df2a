"""A single text, split by position, or one text for each split."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

from ..core.errors import UserError
from ..core.files import read_errors, sha256_file
from ..data.splits import SPLITS, chunks_of, read_chunks, split_bounds
from .corpus import Corpus, Piece

MIN_SPLIT_BYTES = 8
"""A split with less is refused: there is nothing to learn from it or to measure on it."""


@dataclass(frozen=True)
class Text:
    """A text: a file whose bytes are learned as they are, or what was read from another one."""

    name: str
    content: Path | bytes

    @property
    def size(self) -> int:
        """Bytes."""
        if isinstance(self.content, bytes):
            return len(self.content)
        with read_errors(self.content):
            return self.content.stat().st_size

    def chunks(self, part: range) -> Iterator[bytes]:
        """The bytes of a part, cut where no token spans the cut."""
        if isinstance(self.content, bytes):
            return chunks_of(BytesIO(self.content[part.start : part.stop]), len(part), self.name)
        return read_chunks(self.content, part)

    def is_blank(self) -> bool:
        """Whether it holds nothing but white space."""
        return not any(chunk.strip() for chunk in self.chunks(range(self.size)))

    def sha256(self) -> str:
        """Of its bytes, in hexadecimal."""
        if isinstance(self.content, bytes):
            return sha256(self.content).hexdigest()
        return sha256_file(self.content)


def text_corpus(
    texts: dict[str, Text], shares: dict[str, float], lines: tuple[str, ...] = ()
) -> Corpus:
    """A corpus of the text for `train`, from whose end the splits are cut that have no text.

    `shares` are those of val and test, `lines` what the user should know.

    Raises:
        UserError: a text is blank, or too short to be split.
    """
    whole = texts["train"]
    for text in texts.values():
        if text.is_blank():
            raise UserError(
                f"{text.name} holds {text.size} bytes of nothing but white space; put the text to "
                "learn from into it."
            )
    wanted = {split: 0.0 if split in texts else shares[split] for split in SPLITS[1:]}
    bounds = split_bounds(whole.size, wanted["val"], wanted["test"])
    parts = {split: (whole, bounds[split]) for split in SPLITS}
    parts |= {name: (text, range(text.size)) for name, text in texts.items() if name != "train"}
    name, (text, part) = min(parts.items(), key=lambda item: len(item[1][1]))
    if len(part) < MIN_SPLIT_BYTES:
        raise UserError(
            f"{text.name} holds {text.size:,} bytes, which leaves {len(part)} for the {name} split "
            f"and {MIN_SPLIT_BYTES} are needed; use a longer text, or raise "
            "tokenize.val_fraction and tokenize.test_fraction."
        )
    sizes = {split: len(part) for split, (_, part) in parts.items()}
    digests = [text.sha256() for text in texts.values()]
    return Corpus(
        kind="text",
        bytes=whole.size,
        sha256=digests[0] if len(digests) == 1 else sha256("".join(digests).encode()).hexdigest(),
        sizes=sizes,
        read=lambda: (
            Piece(split, chunk)
            for split, (text, part) in parts.items()
            for chunk in text.chunks(part)
        ),
        lines=lines,
    )
