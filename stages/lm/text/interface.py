"""What every tokenizer does: bytes to token ids and back."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NoReturn

from ..core.errors import UserError
from .chat import Chat

_INVALID = re.compile("([\udc80-\udcff]+)")


class Tokenizer(ABC):
    """A vocabulary, and how text is cut into its tokens."""

    name: str
    tokens: list[bytes]
    """What each token writes, by id; nothing, for a control token."""
    control: dict[int, str]
    """Names of the tokens that are never made from text, by id."""
    chat: Chat
    """How conversations are written."""
    opening: tuple[int, ...] = ()
    """Control tokens that stand before every text."""
    pattern = ""
    """The regular expression that cuts text before merging, if the vocabulary is stored apart."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return len(self.tokens)

    @abstractmethod
    def encode(self, data: bytes, follows: bool = False) -> list[int]:
        """The token ids of any bytes. With `follows`, they are not the beginning of a text.

        Bytes that are not UTF-8 become one token each, where the vocabulary has such tokens.
        """

    @abstractmethod
    def encode_rendered(self, parts: list[str]) -> list[int]:
        """The ids of a text that a template made, in which names of control tokens stand for them.

        The text is in parts, so that a name which is not for a control token is cut.
        """

    @property
    def text_end(self) -> int | None:
        """The control token that ends a text."""
        return self.named(self.chat.eos_token)

    @abstractmethod
    def for_documents(self) -> "Tokenizer":
        """The same with a control token that ends a text.

        Raises:
            UserError: the vocabulary has none.
        """

    def may_be_cut(self, before: bytes, after: bytes) -> bool:
        """Whether two parts of a text become the same tokens apart as together."""
        return True

    @abstractmethod
    def for_conversations(self) -> "Tokenizer":
        """The same with a chat template, one of ours if it has none.

        Raises:
            UserError: no control token of the vocabulary can end an answer.
        """

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of token ids, which must be in the vocabulary."""
        return b"".join(self.tokens[token] for token in ids)

    def named(self, name: str) -> int | None:
        """The control token of a name."""
        return next((token for token, own in self.control.items() if own == name), None)

    def shown(self, token: int) -> bytes:
        """What stands for a token in a list of tokens: its bytes, or a control token's name."""
        name = self.control.get(token)
        return self.tokens[token] if name is None else name.encode()

    @abstractmethod
    def to_text(self) -> str:
        """The vocabulary as text, to be stored with its `name` and `pattern`."""

    @abstractmethod
    def merges(self) -> list[tuple[int, int]]:
        """For each id, the ids of the two tokens that are merged into it, or its own id twice."""


def valid_pieces(data: bytes) -> Iterator[str | bytes]:
    """`data` in parts, in turn: text, and bytes that are not UTF-8."""
    # "surrogateescape" turns each invalid byte into a character that valid text cannot have.
    for piece in _INVALID.split(data.decode("utf-8", "surrogateescape")):
        if piece:
            invalid = _INVALID.match(piece)
            yield piece.encode("utf-8", "surrogateescape") if invalid else piece


def raise_panic(error: BaseException, name: str) -> NoReturn:
    """Raise again what the Rust code of a tokenizer raised, a panic (no `Exception`) explained."""
    if type(error).__module__ != "pyo3_runtime":
        raise error
    raise UserError(
        f"the vocabulary {name} cannot encode the text ({error}): what is stored with it is "
        "damaged or forged. Run `dvc repro` to make it again."
    ) from error
