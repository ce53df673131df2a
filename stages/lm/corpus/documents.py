"""Reads documents, finds equal ones and splits them, with little memory for each document."""

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256

import numpy as np

from ..core.errors import UserError
from ..core.paths import shown
from ..data.splits import SPLITS, split_bounds
from ..sources.reading import Document, read_documents
from ..sources.survey import Survey
from ..text.records import TEXT_END
from .assignment import LEFT_OUT, given_split, held_out_copies, split_by_hash
from .corpus import Corpus, Piece
from .duplicates import DuplicateFinder

MANY = 20
"""From so many documents on, whole documents are held out; else the end of all of them."""
MAX_DOCUMENTS = 10_000_000
"""More are refused: each takes some 60 bytes of memory while equal ones are searched."""
NOT_END = "\ufffd".encode()
"""In place of the byte that ends documents, which no text in UTF-8 has."""


@dataclass
class Listing:
    """What is known of each document after reading all."""

    lines: list[str] = field(default_factory=list)
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    """Bytes."""
    given: "array[int]" = field(default_factory=lambda: array("b"))
    """The index in `SPLITS` that the name of its file gives, or -1."""
    finder: DuplicateFinder = field(default_factory=DuplicateFinder)
    sha256: str = ""

    @classmethod
    def of(cls, survey: Survey) -> "Listing":
        """Read all documents of a survey.

        Raises:
            UserError: a file cannot be read, or there are more than `MAX_DOCUMENTS`.
        """
        listing, digest, size = cls(), sha256(), 0
        for document in without_ends(read_documents(survey, listing.lines.append)):
            size += len(document.text)
            listing.finder.add(document.text, document.more)
            digest.update(document.text)
            if not document.more:
                split = given_split(document.name)
                listing.given.append(SPLITS.index(split) if split else -1)
                listing.sizes.append(size)
                if len(listing.sizes) > MAX_DOCUMENTS:
                    raise UserError(
                        f"{shown(survey.folder)} holds more than {MAX_DOCUMENTS:,} documents; "
                        "learn from a part of them, or from all as one text, in a .txt file."
                    )
                digest.update(TEXT_END)
                size = 0
        listing.sha256 = digest.hexdigest()
        return listing


@dataclass(frozen=True)
class DocumentPlan:
    """The split of each document."""

    splits: np.ndarray
    """Its index in `SPLITS`, or `LEFT_OUT`; int8."""
    bounds: dict[str, range] | None = None
    """Where documents are cut instead: a range of the bytes of all that `splits` calls train."""

    def pieces(self, documents: Iterable[Document]) -> Iterator[Piece]:
        """The documents, read once more, each with the split that it or its part is in."""
        number, offset = 0, 0
        for document in documents:
            split = int(self.splits[number])
            number += not document.more
            if split == 0 and self.bounds:
                start, offset = offset, offset + len(document.text)
                for name, bound in self.bounds.items():
                    part = document.text[max(0, bound.start - start) : max(0, bound.stop - start)]
                    if part:
                        ends = offset <= bound.stop and not document.more
                        yield Piece(name, part + TEXT_END * ends)
            elif split != LEFT_OUT:
                yield Piece(SPLITS[split], document.text + TEXT_END * (not document.more))


def document_corpus(survey: Survey, shares: dict[str, float], drop: bool) -> Corpus:
    """The documents of a survey, split; `shares` are of val and test, `drop` is of duplicates.

    Raises:
        UserError: a file cannot be read, or there are too few documents.
    """
    listing = Listing.of(survey)
    if not listing.sizes:
        why = "; ".join(listing.lines) or "nothing is written in its files"
        raise UserError(f"{shown(survey.folder)} holds no text to learn from: {why}.")
    plan, figures = planned(listing, shares, drop)
    sizes, counts = sizes_and_counts(listing, plan)
    return Corpus(
        kind="documents",
        bytes=sum(sizes.values()),
        sha256=listing.sha256,
        sizes=sizes,
        read=lambda: plan.pieces(without_ends(read_documents(survey))),
        counts=counts,
        figures=figures,
        lines=(*listing.lines, *told(figures, drop)),
    )


def without_ends(documents: Iterable[Document]) -> Iterator[Document]:
    """Documents whose bytes do not look like the mark that ends one."""
    for document in documents:
        if TEXT_END in document.text:
            document = replace(document, text=document.text.replace(TEXT_END, NOT_END))
        yield document


def planned(
    listing: Listing, shares: dict[str, float], drop: bool
) -> tuple[DocumentPlan, dict[str, int]]:
    """The split of each document, and figures about duplicates.

    Raises:
        UserError: there are too few documents.
    """
    sizes, given = np.array(listing.sizes), np.array(listing.given)
    duplicates = listing.finder.found()
    first = duplicates.first
    splits = np.maximum(given, 0).astype(np.int8)
    copies = held_out_copies(given, first)
    splits[copies] = LEFT_OUT
    if drop:
        splits[first != np.arange(len(first))] = LEFT_OUT
    figures = {
        "equal_documents": duplicates.equal,
        "similar_documents": duplicates.similar,
        "copies_of_held_out": int(copies.sum()),
    }
    free = np.flatnonzero(splits == 0)
    wanted = {split: shares[split] for split in SPLITS[1:] if SPLITS.index(split) not in given}
    if not len(free):
        raise UserError(
            "no document is left to train on: all are in files for val or test, or copies of those."
        )
    if len(free) < MANY:
        both = dict.fromkeys(SPLITS[1:], 0.0) | wanted
        bounds = split_bounds(int(sizes[free].sum()), both["val"], both["test"])
        return DocumentPlan(splits, bounds if wanted else None), figures
    if wanted:
        hashes = listing.finder.digests[first[free]]
        splits[free] = split_by_hash(sizes[free], first[free], hashes, wanted)
    return DocumentPlan(splits), figures


def sizes_and_counts(listing: Listing, plan: DocumentPlan) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes of each split, and how many documents end in it."""
    sizes, splits = np.array(listing.sizes), plan.splits.copy()
    if plan.bounds:
        free = np.flatnonzero(splits == 0)
        stops = [bound.stop for bound in plan.bounds.values()]
        splits[free] = np.searchsorted(stops, np.cumsum(sizes[free]))
        trained = {name: len(bound) for name, bound in plan.bounds.items()}
        held = {name: int(sizes[plan.splits == i].sum()) for i, name in enumerate(SPLITS) if i}
        by_split = {name: trained[name] + held.get(name, 0) for name in SPLITS}
    else:
        by_split = {name: int(sizes[splits == i].sum()) for i, name in enumerate(SPLITS)}
    return by_split, {name: int((splits == i).sum()) for i, name in enumerate(SPLITS)}


def told(figures: dict[str, int], drop: bool) -> list[str]:
    """Lines about duplicates."""
    lines = []
    if figures["equal_documents"] or figures["similar_documents"]:
        done = "left out" if drop else "kept; corpus.duplicates=drop leaves them out"
        lines.append(
            f"duplicates: {figures['equal_documents']:,} documents equal an earlier one, "
            f"{figures['similar_documents']:,} nearly do ({done})"
        )
    if figures["copies_of_held_out"]:
        lines.append(
            f"{figures['copies_of_held_out']:,} documents have a copy in a file for val or test, "
            "and are not used"
        )
    return lines
