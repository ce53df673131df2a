"""Our own tokenizer: byte-pair encoding without loss, always by tiktoken."""

import base64
import binascii
import re
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import chain

import tiktoken
from tokenizers import Regex
from tokenizers import Tokenizer as BPETrainable
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, FixedLength, Sequence, Split
from tokenizers.trainers import BpeTrainer

from ..core.errors import UserError
from .byte_level import byte_characters
from .chat import MARKS, NO_CHAT, OWN_CHAT, OWN_DOCUMENTS, Chat
from .interface import Tokenizer, raise_panic, valid_pieces

_SPACES = r"\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|" + _SPACES,
    "qwen2": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES,
    "llama-bpe": _CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    + _SPACES,
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTIONS}?"
    + rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTIONS}?"
    + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|"
    + _SPACES,
}
"""Regular expressions that cut text before merging, by llama.cpp's names for them. A tokenizer with
any other pattern cannot be exported to GGUF, which stores the name."""

MAX_RUN = 25_000
"""Longest run of white space, or of other characters, that tiktoken is given at once. It fails on a
megabyte of spaces; Llama 3's tokenizer cuts at the same length."""
MAX_LEARNED_PIECE = 256
"""A vocabulary is learned from pieces of at most so many characters; longer ones (a line of
base64 or of DNA) are cut for it, because the trainer needs the square of a piece's length for each.
No token is longer. Encoding does not cut there, so ids are those of other programs."""

_RUNS = re.compile(rf"\s{{1,{MAX_RUN}}}|\S{{1,{MAX_RUN}}}")


class BytePairTokenizer(Tokenizer):
    """A byte-pair vocabulary and the pattern that cuts text before its merges apply.

    `ranks` maps each token's bytes to its id; ids run from 0 without gaps and hold all 256 bytes,
    so that any bytes can be encoded. There are no special tokens: text that looks like one is
    encoded as text.

    Raises:
        UserError: the ids have gaps, or a byte has none.
    """

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, name: str, chat: Chat = NO_CHAT
    ) -> None:
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise UserError(
                f"the vocabulary {name} lacks {len(missing)} of the 256 single bytes, the first "
                f"is {missing[0]:#04x}, so it cannot encode every text; take another vocabulary."
            )
        if sorted(ranks.values()) != list(range(len(ranks))):
            raise UserError(
                f"the vocabulary {name} does not number its {len(ranks)} tokens from 0 to "
                f"{len(ranks) - 1}; the file is damaged or of another kind."
            )
        self.name = name
        self.pattern = pattern
        self.ranks = ranks
        self._encoding = tiktoken.Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={}
        )
        self._byte_ids = [ranks[bytes([byte])] for byte in range(256)]
        self.spelled = sorted(ranks, key=ranks.__getitem__)
        """The bytes of each token, by id, marks included."""
        self.tokens = list(self.spelled)
        self.chat = chat
        marks = {name: ranks[bytes([byte])] for name, byte in MARKS.items()}
        named = MARKS if chat.template else (chat.eos_token,)
        self.control = {token: name for name, token in marks.items() if name in named}
        for token in self.control:
            self.tokens[token] = b""

    def encode(self, data: bytes, follows: bool = False) -> list[int]:
        """See `Tokenizer`; `decode` is the exact inverse."""
        try:
            return self._encode_text(data.decode())
        except UnicodeDecodeError:
            pass
        ids: list[int] = []
        known: dict[str | bytes, list[int]] = {}  # of noise, short pieces come again and again
        for piece in valid_pieces(data):
            if piece not in known:
                known[piece] = (
                    [self._byte_ids[byte] for byte in piece]
                    if isinstance(piece, bytes)
                    else self._encode_text(piece)
                )
            ids += known[piece]
        return ids

    def encode_rendered(self, parts: list[str]) -> list[int]:
        """See `Tokenizer`."""
        ids = {name: token for token, name in self.control.items()}
        names = re.compile(f"({'|'.join(map(re.escape, ids))})" if ids else "(?!)")
        return [
            token
            for part in parts
            for piece in names.split(part)
            for token in ([ids[piece]] if piece in ids else self.encode(piece.encode()))
        ]

    def for_documents(self) -> "BytePairTokenizer":
        """See `Tokenizer`."""
        return BytePairTokenizer(self.ranks, self.pattern, self.name, OWN_DOCUMENTS)

    def for_conversations(self) -> "BytePairTokenizer":
        """See `Tokenizer`."""
        return BytePairTokenizer(self.ranks, self.pattern, self.name, OWN_CHAT)

    def _encode_text(self, text: str) -> list[int]:
        if len(text) <= MAX_RUN:
            return self._encode_part(text)
        return list(chain.from_iterable(map(self._encode_part, _bounded_runs(text))))

    def _encode_part(self, text: str) -> list[int]:
        try:
            return self._encoding.encode_ordinary(text)
        except BaseException as error:
            raise_panic(error, self.name)

    def to_text(self) -> str:
        """The vocabulary in tiktoken's file format: each line a token in base64 and its id."""
        return "".join(
            f"{base64.b64encode(token).decode()} {rank}\n"
            for rank, token in enumerate(self.spelled)
        )

    def merges(self) -> list[tuple[int, int]]:
        """For each id, the ids of the two tokens that are merged into it.

        A single byte has its own id twice, and so has a token that no merges lead to: some
        published vocabularies have such tokens.
        """
        return [self._last_merge(token) for token in self.spelled]

    def _last_merge(self, token: bytes) -> tuple[int, int]:
        # Merges the token's bytes as tiktoken does, the lowest id first and the leftmost of equals,
        # until two parts remain. With a queue, because repetitive texts give tokens of many
        # thousand bytes. Parts are a linked list: `before` and `after` hold offsets into the token.
        own, size = self.ranks[token], len(token)
        parts = [self.ranks[bytes([byte])] for byte in token]
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        queue: list[tuple[int, int, int, int]] = []

        def offer(start: int) -> None:
            if start < 0 or after[start] >= size:
                return
            left, right = parts[start], parts[after[start]]
            merged = self.ranks.get(self.spelled[left] + self.spelled[right], own)
            if merged < own:
                heappush(queue, (merged, start, left, right))

        for start in range(size):
            offer(start)
        count = size
        while count > 2 and queue:
            merged, start, left, right = heappop(queue)
            end = after[start]
            if parts[start] != left or end >= size or parts[end] != right:
                continue  # one of the two was merged with another meanwhile
            parts[start], parts[end] = merged, -1
            after[start] = after[end]
            if after[end] < size:
                before[after[end]] = start
            count -= 1
            offer(before[start])
            offer(start)
        return (parts[0], parts[after[0]]) if count == 2 else (own, own)

    @classmethod
    def from_text(
        cls, text: str, pattern: str, name: str, chat: Chat = NO_CHAT
    ) -> "BytePairTokenizer":
        """The tokenizer that `to_text` wrote, or any `.tiktoken` file.

        Raises:
            UserError: a line is not base64 and a number.
        """
        ranks = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line:
                continue
            try:
                token, rank = line.split()
                ranks[binascii.a2b_base64(token, strict_mode=True)] = int(rank)
            except (ValueError, binascii.Error):
                raise UserError(
                    f"line {number} of the vocabulary {name} is {line[:40]!r}, not a token in "
                    "base64 and its id; the file is damaged or not a .tiktoken file."
                ) from None
        return cls(ranks, pattern, name, chat)


def _bounded_runs(text: str) -> list[str]:
    """`text` in parts without a run of more than `MAX_RUN` characters."""
    half = MAX_RUN // 2
    blocks = (text[start : start + half] for start in range(0, len(text), half))
    # A longer run fills a block, and of ordinary text only a block's first word is looked at.
    if not any(block.isspace() or len(block.split(None, 1)) == 1 for block in blocks):
        return [text]
    # Cut inside long runs only: elsewhere a cut would change how the pattern matches.
    parts, start = [], 0
    for run in _RUNS.finditer(text):
        end = run.end()
        goes_on = text[end - 1].isspace() == text[end : end + 1].isspace()
        if end - run.start() == MAX_RUN and goes_on:
            parts.append(text[start:end])
            start = end
    return [*parts, text[start:]]


def train_bpe(texts: Iterator[str], vocab_size: int, pattern_name: str) -> BytePairTokenizer:
    """A byte-level BPE vocabulary of at most `vocab_size` tokens, learned from `texts`.

    Hugging Face `tokenizers` finds the merges (Sennrich et al. 2016, on bytes as in GPT-2). Ids are
    the 256 bytes and then the tokens in the order of merging, which tiktoken takes as priority.
    Short texts give fewer tokens.
    """
    alphabet = byte_characters()
    trainable = BPETrainable(BPE())
    trainable.pre_tokenizer = Sequence(
        [
            Split(Regex(PATTERNS[pattern_name]), behavior="isolated"),
            FixedLength(MAX_LEARNED_PIECE),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        initial_alphabet=list(alphabet),
        show_progress=False,
    )
    trainable.train_from_iterator(texts, trainer)
    vocabulary = trainable.get_vocab()
    merged = [token for token in sorted(vocabulary, key=vocabulary.__getitem__) if len(token) > 1]
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [bytes(alphabet[char] for char in token) for token in merged]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return BytePairTokenizer(ranks, PATTERNS[pattern_name], "bpe")


def named_tokenizer(name: str) -> BytePairTokenizer:
    """A vocabulary that tiktoken knows by name, and downloads once.

    Raises:
        UserError: the download fails.
    """
    try:
        encoding = tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors
        raise UserError(
            f"tiktoken could not download the vocabulary {name!r} ({type(error).__name__}). "
            "Without a network, set tokenize.tokenizer to bpe, or put the vocabulary's .tiktoken "
            "file into data/base/ and name it there."
        ) from error
    # tiktoken documents these two as the way to build on an existing encoding.
    return BytePairTokenizer(encoding._mergeable_ranks, encoding._pat_str, name)
