"""What the lengths of documents and records say about the context."""

from dataclasses import dataclass

LONGEST = {"documents": 512, "records": 2048}
"""A context is raised up to here to hold 99 % of them whole. Longer documents are cut, for which
the usual context does; longer records are left out."""


@dataclass(frozen=True)
class Lengths:
    """How long the documents or records are that a model learns."""

    kind: str
    """`documents` or `records`."""
    long: int
    """99 % of them have at most so many tokens, their ends included."""

    def context(self, usual: int, most: int) -> int:
        """A context that holds 99 %, within the limits; at least the `usual` one.

        `most` is a further limit, that of the weights to start from.
        """
        wanted = 1 << (max(1, self.long - 1) - 1).bit_length()  # the first token is no target
        limit = min(most, LONGEST[self.kind])
        if wanted > limit and self.kind == "documents":
            return usual
        return max(usual, min(wanted, limit))
