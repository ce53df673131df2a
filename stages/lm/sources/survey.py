"""Which files of a folder are used and what each is, found without reading them whole."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..settings.corpus import AUTO, CorpusSettings
from .files import SourceFile, open_source
from .kinds import HEAD_BYTES, format_of, split_packing
from .shapes import KNOWN, shape_of, unknown
from .tables import SPACE, TABLES, rows
from .walk import Found, LeftOut, files_in, listed


@dataclass(frozen=True)
class Survey:
    """What is learned from, and what the user should know about it.

    To read a part of it only, replace `files`.
    """

    folder: Path
    files: tuple[SourceFile, ...]
    """Sorted by name; all hold texts, or all hold records. Empty if there is nothing at all."""
    lines: tuple[str, ...]
    """To be told: what is not used and why, what is converted."""
    settings: CorpusSettings = AUTO

    @property
    def kind(self) -> str:
        """`text`, `records`, or "" of an empty folder."""
        return self.files[0].kind if self.files else ""

    @property
    def bytes(self) -> int:
        """Of all files that are used, as they lie there."""
        return sum(file.bytes for file in self.files)

    @property
    def plain_text(self) -> Path | None:
        """The only file, if it is a text whose bytes are learned as they are."""
        if len(self.files) != 1:
            return None
        file = self.files[0]
        as_it_is = file.format == "plain" and not file.packing and not file.encoding
        return file.path if as_it_is else None


def survey(folder: Path, settings: CorpusSettings = AUTO) -> Survey:
    """Look at each file of a folder, or at one file, by its name and its first bytes or row.

    Raises:
        UserError: there are texts and records, or files but none that can be used, or the system
            cannot read something.
    """
    left_out, files = LeftOut(), []
    with read_errors(folder, "put your files there."):
        if folder.is_dir():
            found = files_in(folder, left_out)
        else:
            found = [Found(folder, folder.name, folder.stat().st_size)]
    for each in found:
        try:
            files.append(_looked_at(each, settings))
        except ValueError as error:
            left_out.add(str(error), each.name)
    lines = left_out.lines()
    if lines and not files:
        raise UserError(f"{shown(folder)} holds nothing to learn from; {'; '.join(lines)}.")
    by_kind = {kind: [f.name for f in files if f.kind == kind] for kind in ("records", "text")}
    if all(by_kind.values()):
        raise UserError(
            f"{shown(folder)} holds records ({listed(by_kind['records'])}) and texts "
            f"({listed(by_kind['text'])}), but one model learns from one of them; move the others "
            "elsewhere."
        )
    converted: dict[str, list[str]] = {}
    for file in files:
        if file.encoding:
            converted.setdefault(file.encoding.upper(), []).append(file.name)
    lines += [f"converted from {name} to UTF-8: {listed(them)}" for name, them in converted.items()]
    return Survey(folder, tuple(files), tuple(lines), settings)


def _looked_at(found: Found, settings: CorpusSettings) -> SourceFile:
    """What a file is.

    Raises:
        ValueError: it is not used; says why.
    """
    inner, packing = split_packing(found.name)
    if not found.bytes:
        raise ValueError("empty")
    file = SourceFile(found.path, found.name, found.bytes, "plain", packing)
    with open_source(file) as source:
        head = source.read(HEAD_BYTES)
        kind, encoding = format_of(inner, head)
        file = replace(file, format=kind, encoding=encoding)
    if kind == "json":
        return _json(file, settings)
    if kind == "lines" and _first_character(file) == "[":
        file = replace(file, format="list")
    if kind == "pdf" and importlib.util.find_spec("pypdf") is None:
        raise ValueError("PDF, which needs a package: `pip install pypdf`")
    return replace(file, kind=_kind(file, settings)) if file.format in TABLES else file


def _first_character(file: SourceFile) -> str:
    with open_source(file) as source:
        text = source.read(HEAD_BYTES).decode("utf-8-sig", "replace")
    return text.lstrip(SPACE)[:1]


def _kind(file: SourceFile, settings: CorpusSettings) -> str:
    """`text` or `records`, by the first row.

    Raises:
        ValueError: its columns are none that are known or set.
    """
    first = list(rows(file, limit=1))
    if not first:
        raise ValueError("a table without rows")
    _, row = first[0]
    if isinstance(row, str):
        return "text"
    if not isinstance(row, dict):
        raise ValueError(f"JSON whose {TABLES[file.format]}s are no objects; known are {KNOWN}")
    shape = shape_of(tuple(row), settings)
    if shape is None:
        raise ValueError(unknown(tuple(row), settings))
    return shape.kind


def _json(file: SourceFile, settings: CorpusSettings) -> SourceFile:
    """A `.json` file: a list of rows, lines in spite of its name, or else a text like source code.

    Raises:
        ValueError: it is a list of rows that cannot be used.
    """
    if _first_character(file) == "[":
        file = replace(file, format="list")
        return replace(file, kind=_kind(file, settings))
    try:
        lines = replace(file, format="lines")
        return replace(lines, kind=_kind(lines, settings))
    except (UserError, ValueError):
        return replace(file, format="plain")
