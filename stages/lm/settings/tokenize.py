"""The `tokenize:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import tiktoken

from .loader import Choice, Range


@dataclass(frozen=True, kw_only=True)
class TokenizeSettings:
    """How the text becomes tokens, and which part of it is held out."""

    SECTION: ClassVar[str] = "tokenize"

    tokenizer: str
    """`bpe` trains a byte-level BPE on the training split. `base` is the vocabulary of the weights
    that `init_from` names, as it is. A tiktoken name (`gpt2`,
    `cl100k_base`, `o200k_base`) is a published vocabulary, downloaded once by tiktoken. A file name
    that ends in `.tiktoken` is read from `data/base/`."""

    vocab_size: Annotated[int, Range(256, 200_000)]
    """Tokens in a `bpe` vocabulary, the 256 bytes included. No effect on the other tokenizers."""

    pattern: Annotated[str, Choice(("gpt-2", "qwen2", "llama-bpe", "gpt-4o"))]
    """The regular expression that cuts text before byte pairs are merged, by llama.cpp's name. Used
    by `bpe` and by `.tiktoken` files; `base` and a tiktoken name bring their own."""

    val_fraction: Annotated[float, Range(0.001, 0.5)]
    """Share of the bytes (of a text, between training and test split) or of the records that is
    held out to choose the best epoch, an early stop and the quantization scheme. No effect where a
    file or folder in `data/input/` is named `val`."""

    test_fraction: Annotated[float, Range(0.001, 0.5)]
    """Share of the bytes (of a text, at its end) or of the records that is held out for `evaluate`
    alone. No effect where a file or folder is named `test`."""

    def fractions(self) -> dict[str, float]:
        """The share of each split that is held out."""
        return {"val": self.val_fraction, "test": self.test_fraction}

    def __post_init__(self) -> None:
        known = tiktoken.list_encoding_names()
        words = ("bpe", "base", *known)
        if not self.tokenizer.endswith(".tiktoken") and self.tokenizer not in words:
            raise ValueError(
                f"tokenize.tokenizer is {self.tokenizer!r}, but must be bpe, base, the name of "
                f"a .tiktoken file in data/base/, one of tiktoken's ({', '.join(known)}), or auto."
            )
        if self.val_fraction + self.test_fraction > 0.9:
            raise ValueError(
                f"tokenize.val_fraction {self.val_fraction:g} and tokenize.test_fraction "
                f"{self.test_fraction:g} leave less than a tenth of the text to train on; "
                "lower them."
            )
