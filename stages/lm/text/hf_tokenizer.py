"""A published vocabulary as it is: a tokenizer.json, run by Hugging Face's `tokenizers`."""

import json
import re
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as Runner

from ..core.errors import UserError
from .byte_level import byte_characters
from .chat import NO_CHAT, PLAIN_TEMPLATE, Chat
from .interface import Tokenizer, raise_panic, valid_pieces
from .tokenizer_json import MAX_TEXT, check_document, components

SPACE = "\u2581"
"""Stands for a space in SentencePiece's tokens."""
NEAR = 1000
"""Bytes before and after a cut of a text that tell whether a token spans it."""
UNKNOWN = "\ufffd".encode()
BYTE_NAME = re.compile("<0x([0-9A-F]{2})>")
"""Of a byte among SentencePiece's tokens."""


class HFTokenizer(Tokenizer):
    """The tokenizer that a tokenizer.json describes, with the same ids as in transformers.

    Its special tokens are control tokens. Other added tokens are text, as in transformers.

    Raises:
        ValueError: it cannot be used; the message says why, as the end of a sentence.
        LookupError, TypeError, AttributeError: a part is missing or of another type.
    """

    def __init__(self, text: str, name: str, chat: Chat = NO_CHAT) -> None:
        if len(text) > MAX_TEXT:
            raise ValueError(f"it has {len(text):,} characters, more than {MAX_TEXT:,}")
        document = json.loads(text)
        check_document(document)
        for added in document.get("added_tokens") or []:
            # Otherwise text that only becomes a name by normalization is taken for it.
            added["normalized"] = added["normalized"] and not added["special"]
        self.name = name
        self.chat = chat
        self._document: dict[str, Any] = document
        self._runner = _runner(document)
        # Text that looks like a special token is text.
        self._runner.encode_special_tokens = True
        self.tokens, self.control = self._all_tokens()
        self.opening = self._opening()
        self._byte_ids = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}

    def _all_tokens(self) -> tuple[list[bytes], dict[int, str]]:
        vocabulary = self._runner.get_vocab(with_added_tokens=False)
        added = self._runner.get_added_tokens_decoder()
        self.added = {number for number, other in added.items() if not other.special}
        """Tokens that text makes wherever it has them, before anything else."""
        size = 1 + max([*vocabulary.values(), *added])
        if size > 2 * (len(vocabulary) + len(added)) + 1024:
            raise ValueError(f"it has ids up to {size - 1:,} for {len(vocabulary):,} tokens")
        tokens, control = [b""] * size, {}
        written = self._written_by()
        for token, number in vocabulary.items():
            tokens[number] = written(token)
        for number, other in added.items():
            tokens[number] = b"" if other.special else other.content.encode()
            if other.special:
                control[number] = other.content
        unknown = self._unknown()
        if unknown in control:
            del control[unknown]
            tokens[unknown] = UNKNOWN
        if any(len(content) < 2 for content in control.values()):
            raise ValueError("a special token has a name of less than two characters")
        return tokens, control

    def _opening(self) -> tuple[int, ...]:
        for part in self.parts("post_processor"):
            if part["type"] == "TemplateProcessing":
                name = part["single"][0].get("SpecialToken", {}).get("id", "")
                token = self.named(name)
                return () if token is None else (token,)
        return ()

    def _unknown(self) -> int | None:
        """The id that text gets which the vocabulary cannot spell; None where it spells all."""
        model = self._document["model"]
        if model.get("byte_fallback") or "ByteLevel" in self._decoders():
            return None
        if model.get("type") == "Unigram":
            unknown: int | None = model.get("unk_id")
            return unknown
        name = model.get("unk_token")
        return self._runner.token_to_id(name) if name else None

    def parts(self, section: str) -> list[dict[str, Any]]:
        """The members of a section of the tokenizer.json, see `components`."""
        return components(self._document, section)

    def printed(self) -> list[str]:
        """The tokens as the tokenizer.json writes them, by id."""
        printed = [""] * self.vocab_size
        for token, number in self._runner.get_vocab().items():
            printed[number] = token
        return printed

    def printed_merges(self) -> list[tuple[str, str]]:
        """The pairs of printed tokens that are merged, in order; none of a unigram vocabulary."""
        return [_pair(merge) for merge in self._document["model"].get("merges", [])]

    def _decoders(self) -> set[str]:
        return {component["type"] for component in self.parts("decoder")}

    def _written_by(self) -> Any:
        """The function from a token of the model to the bytes it writes."""
        decoders = self._decoders()
        if "ByteLevel" in decoders:
            characters = byte_characters()
            # A token beside the byte-level ones (a special one, not listed as such) is text.
            return lambda token: (
                bytes(characters[char] for char in token)
                if all(char in characters for char in token)
                else token.encode()
            )

        def written(token: str) -> bytes:
            byte = BYTE_NAME.fullmatch(token) if "ByteFallback" in decoders else None
            return bytes([int(byte[1], 16)]) if byte else token.replace(SPACE, " ").encode()

        return written

    def encode(self, data: bytes, follows: bool = False) -> list[int]:
        """See `Tokenizer`. A vocabulary that normalizes text gives the ids of the normalized one.

        Some vocabularies put a space before a text, but not before what follows other text.
        """
        ids: list[int] = []
        for piece in valid_pieces(data):
            if isinstance(piece, bytes):
                for byte in piece:
                    single = self._byte_ids.get(bytes([byte]))
                    ids += self._following("\ufffd") if single is None else [single]
            else:
                ids += self._following(piece) if follows else self._encode_text(piece)
            follows = True
        return ids

    def _following(self, text: str) -> list[int]:
        """The ids of a text that follows another one."""
        line, ids = self._encode_text("\n"), self._encode_text("\n" + text)
        return ids[len(line) :] if ids[: len(line)] == line else self._encode_text(text)

    def encode_rendered(self, parts: list[str]) -> list[int]:
        """See `Tokenizer`."""
        return [token for part in parts for token in self._run(self._name_reader, part)]

    def for_documents(self) -> "HFTokenizer":
        """See `Tokenizer`."""
        if self.text_end is None:
            raise UserError(
                f"the vocabulary {self.name} has no token that ends a text, which documents and "
                "records need; bring the model's tokenizer_config.json, or take another model."
            )
        return self

    def may_be_cut(self, before: bytes, after: bytes) -> bool:
        """See `Tokenizer`; as far as the text near the cut tells."""
        before, after = before[-NEAR:], after[:NEAR]
        apart = self.encode(before) + self.encode(after, follows=True)
        return self.encode(before + after) == apart

    def for_conversations(self) -> "HFTokenizer":
        """See `Tokenizer`."""
        if not self.chat.template:
            self.for_documents()
            self.chat = replace(self.chat, template=PLAIN_TEMPLATE)
        return self

    @cached_property
    def _name_reader(self) -> Runner:
        """Takes the name of a control token for this token."""
        return _runner(self._document)

    def _encode_text(self, text: str) -> list[int]:
        ids = self._run(self._runner, text)
        if self.control.keys().isdisjoint(ids):
            return ids
        # A unigram vocabulary lists the names among its pieces: cut them.
        first, *others = self._inside_names.split(text)
        if not others:
            return [token for token in ids if token not in self.control]
        return self._encode_text(first) + [i for part in others for i in self._following(part)]

    def _run(self, runner: Runner, text: str) -> list[int]:
        try:
            ids: list[int] = runner.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise_panic(error, self.name)
        return ids

    @cached_property
    def _inside_names(self) -> re.Pattern[str]:
        """Matches after the first character of each name of a control token."""
        ways = (f"(?<={re.escape(n[0])})(?={re.escape(n[1:])})" for n in self.control.values())
        return re.compile("|".join(ways))

    def to_text(self) -> str:
        """The tokenizer.json, without spaces."""
        return json.dumps(self._document, ensure_ascii=False, separators=(",", ":"))

    def merges(self) -> list[tuple[int, int]]:
        """See `Tokenizer`."""
        pairs = [(own, own) for own in range(self.vocab_size)]
        ids = self._runner.get_vocab(with_added_tokens=False)
        for left, right in reversed(self.printed_merges()):
            pairs[ids[left + right]] = ids[left], ids[right]
        return pairs


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _runner(document: dict[str, Any]) -> Runner:
    """What `tokenizers` makes of a document, without what would add to a text or cut it."""
    less = document | {"post_processor": None, "truncation": None, "padding": None}
    try:
        return Runner.from_str(json.dumps(less))
    except Exception as error:  # tokenizers has no class of its own
        raise ValueError(f"tokenizers cannot read it ({error})") from None
