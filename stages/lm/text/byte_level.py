"""Tokens as printable text, the way GPT-2 wrote its vocabulary. Knows nothing about encoding."""


def byte_characters() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes: printable Latin-1 is itself, the rest follow
    U+0100.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(0x100 + place): byte for place, byte in enumerate(others)
    }


def printed_tokens(tokens: list[bytes]) -> list[str]:
    """Each token's bytes as their stand-ins."""
    characters = {byte: char for char, byte in byte_characters().items()}
    return ["".join(characters[byte] for byte in token) for token in tokens]


def printed_merges(printed: list[str], merges: list[tuple[int, int]]) -> list[tuple[str, str]]:
    """What `Tokenizer.merges` gives, in the order of merging, each as the two printed tokens."""
    pairs = ((left, right) for own, (left, right) in enumerate(merges) if left != own)
    return [(printed[left], printed[right]) for left, right in pairs]
