"""Encodings of text: UTF-16 and UTF-32 become UTF-8, others are recognised and named."""

import codecs
from collections.abc import Iterable, Iterator

from ..core.errors import UserError

_MARKS = {  # those of UTF-32 first: one of them begins like one of UTF-16
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_SAMPLE_BYTES = 1 << 16


def wide_encoding(head: bytes) -> str:
    """`utf-16-le` or the like if a text that begins with `head` is written in it, else "".

    Without a byte order mark, the zero bytes of Latin letters give it away.
    """
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    for width, names in ((4, ("utf-32-le", "utf-32-be")), (2, ("utf-16-le", "utf-16-be"))):
        usable = len(head) // width * width
        if usable < 4 * width:
            continue
        units = usable // width
        zeros = [head[place:usable:width].count(0) / units for place in range(width)]
        for name, low, high in ((names[0], zeros[0], zeros[1:]), (names[1], zeros[-1], zeros[:-1])):
            if low < 0.05 and min(high) > 0.7 and _decodes(head[:usable], name):
                return name
    return ""


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        codecs.getincrementaldecoder(encoding)().decode(data)
    except UnicodeDecodeError:
        return False
    return True


def recoded(blocks: Iterable[bytes], encoding: str, where: str) -> Iterator[bytes]:
    """Blocks of text in `encoding` as UTF-8, without a byte order mark.

    Raises:
        UserError: they are not in that encoding.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    first = True
    try:
        for block in blocks:
            text = decoder.decode(block)
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            yield text.encode()
        decoder.decode(b"", final=True)
    except UnicodeError:
        raise UserError(
            f"{where} begins as {encoding.upper()} but does not go on so; it was cut or joined "
            "with another file. Save it as UTF-8."
        ) from None


def invalid_bytes(data: bytes) -> int:
    """How many bytes are no part of a character in UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return len(data) - len(data.decode("utf-8", "ignore").encode())
    return 0


def likely_encoding(data: bytes) -> str:
    """The name, as `iconv` knows it, of the encoding that `data` is probably in; "" if unknown."""
    from charset_normalizer import from_bytes  # takes a tenth of a second

    # Only lines that say something about it; a few times as much ASCII would decide instead.
    lines = [line for line in data.split(b"\n") if not line.isascii()]
    sample = b"\n".join(lines)[:_SAMPLE_BYTES]
    guesses = from_bytes(sample)
    best = guesses.best()
    if not best:
        return ""
    # Of those that fit a few accents equally well, Windows' in the West is by far the commonest.
    western = any(g.encoding == "cp1252" and g.coherence >= best.coherence for g in guesses)
    western |= sample.decode("cp1252", "replace") == str(best)
    name = "cp1252" if western else best.encoding
    return "" if name in ("utf_8", "ascii") else name.upper().replace("_", "-")
