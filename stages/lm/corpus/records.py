"""Records, split by prompt and held in memory."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

from ..core.errors import UserError
from ..data.splits import SPLITS
from ..sources.reading import read_records
from ..sources.survey import Survey
from ..text.records import TEXT_END, Record, split_records
from .assignment import given_split
from .corpus import Corpus, Piece


def record_corpus(survey: Survey, shares: dict[str, float]) -> Corpus:
    """The records of a survey without repetitions, split; `shares` are those of val and test.

    Raises:
        UserError: a file cannot be read, a row is no record, or there are too few.
    """
    lines: list[str] = []
    total = 0
    given: dict[str | None, dict[Record, None]] = {}
    for split in (None, *SPLITS):
        files = tuple(file for file in survey.files if given_split(file.name) == split)
        found = given.setdefault("train" if split is None else split, {})
        for record in read_records(replace(survey, files=files), lines.append):
            found[record] = None
            total += 1
    test, val = given["test"], given["val"].keys() - given["test"].keys()
    held = {"val": [each for each in given["val"] if each in val], "test": list(test)}
    free = [each for each in given["train"] if each not in test and each not in val]
    splits = with_held_out(free, held, shares)
    different = sum(map(len, splits.values()))
    if not different:
        raise UserError("there is no record to learn from.")
    if total > different:
        lines.append(f"{total - different:,} records equal another one and are left out")
    data = {split: [record.data() for record in part] for split, part in splits.items()}

    def read() -> Iterator[Piece]:
        return (
            Piece(split, content.encode() + TEXT_END)
            for split, part in splits.items()
            for record in part
            for _, content in record.conversation()
        )

    return Corpus(
        kind="records",
        bytes=survey.bytes,
        sha256=sha256(b"".join(sorted(b"".join(part) for part in data.values()))).hexdigest(),
        sizes={split: sum(map(len, part)) for split, part in data.items()},
        read=read,
        records=splits,
        counts={split: len(part) for split, part in splits.items()},
        figures={"equal_records": total - different},
        lines=tuple(lines),
    )


def with_held_out(
    free: list[Record], held: dict[str, list[Record]], shares: dict[str, float]
) -> dict[str, list[Record]]:
    """The records of each split; those of `held` are of files for val or test, if there are any.

    Raises:
        UserError: there are too few records.
    """
    if all(held.values()):
        return {"train": free, **held}
    wanted = {split: 0.0 if held[split] else share for split, share in shares.items()}
    splits = split_records(free, wanted["val"], wanted["test"])
    for split, records in held.items():
        if records:
            splits["train"] += splits[split]
            splits[split] = records
    return splits
