"""Tokens as printable text, the way GPT-2's `vocab.json` and `merges.txt` write them."""


def byte_characters() -> dict[str, int]:
    """The byte that each of GPT-2's 256 printable characters stands for.

    Printable Latin-1 stands for itself; the other bytes have the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + index): byte for index, byte in enumerate(others)
    }


def printed_tokens(tokens: list[bytes]) -> list[str]:
    """Each token as printable characters, one per byte."""
    characters = {byte: char for char, byte in byte_characters().items()}
    return ["".join(characters[byte] for byte in token) for token in tokens]


def printed_merges(printed: list[str], merges: list[tuple[int, int]]) -> list[tuple[str, str]]:
    """The pairs of printed tokens that are merged, in order; `merges` as of `Tokenizer.merges`."""
    pairs = ((left, right) for own, (left, right) in enumerate(merges) if left != own)
    return [(printed[left], printed[right]) for left, right in pairs]
