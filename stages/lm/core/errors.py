"""The exception for what the user can mend."""

from .console import printable


class UserError(Exception):
    """A mistake or accident that the user can mend.

    The message names the key or file, its value, the likely cause and the remedy. It is made one
    line of less than 2,000 characters, without control characters, whatever it quotes.
    """

    def __init__(self, message: str) -> None:
        line = printable(" ".join(message.split()))
        super().__init__(line if len(line) < 2000 else f"{line[:1000]} ... {line[-800:]}")
