"""Makes the tokenizer of the texts in a model file, which `TokenizerMeta.stored` wrote."""

import base64
import zlib

from .chat import Chat
from .hf_tokenizer import HFTokenizer
from .interface import Tokenizer
from .tokenizer import BytePairTokenizer
from .tokenizer_json import MAX_TEXT


def load_tokenizer(stored: dict[str, str]) -> Tokenizer:
    """The tokenizer in a model file.

    Raises:
        LookupError, TypeError, AttributeError, ValueError, UserError: they are damaged or forged.
    """
    name, pattern, vocabulary = (stored[key] for key in ("name", "pattern", "vocabulary"))
    chat = Chat(*(stored[key] for key in ("template", "bos_token", "eos_token")))
    if pattern:
        return BytePairTokenizer.from_text(vocabulary, pattern, name, chat)
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(base64.b64decode(vocabulary, validate=True), MAX_TEXT)
    except zlib.error as error:
        raise ValueError(f"its tokenizer cannot be unpacked ({error})") from None
    if not unpacking.eof:
        raise ValueError(f"its tokenizer is cut off, or has more than {MAX_TEXT:,} bytes")
    return HFTokenizer(text.decode(), name, chat)
