"""Rows of JSON, CSV and parquet files, one at a time, whatever the size of the file."""

import codecs
import csv
import io
import json
from collections.abc import Iterator
from itertools import chain, islice, zip_longest
from typing import Any

from ..core.errors import UserError
from .encodings import likely_encoding
from .files import BLOCK_BYTES, SourceFile, open_source
from .isolation import isolated

MAX_ROW = 1 << 24
"""Bytes (of a list and of CSV: characters) of the longest row."""
TABLES = {"lines": "line", "list": "item", "csv": "row", "parquet": "row"}
"""What holds rows, and what one is called."""
SPACE = " \t\r\n"


def rows(file: SourceFile, limit: int | None = None) -> Iterator[tuple[int, Any]]:
    """The first `limit` rows of a file, or all, and their numbers, as people count them.

    A row is a dict, or whatever stands in its place in JSON.

    Raises:
        UserError: the file is damaged, not UTF-8, or has a row of more than `MAX_ROW`.
    """
    try:
        if file.format == "parquet":
            yield from enumerate(isolated(file, limit), 1)
        else:
            read = {"lines": _lines, "list": _items, "csv": _cells}[file.format]
            yield from islice(read(file), limit)
    except UnicodeDecodeError as error:
        raise UserError(f"{file.shown} is not UTF-8; {remedy(file, error.object)}") from None


def remedy(file: SourceFile, data: bytes) -> str:
    """What to run for a file that holds `data`, which is not UTF-8."""
    name = likely_encoding(data)
    if not name:
        return "its encoding is unknown; save it as UTF-8."
    source = file.shown
    return f"it is likely {name}: `iconv -f {name} -t UTF-8 '{source}' > '{source}.new'`."


def too_long(file: SourceFile, number: int) -> UserError:
    """The error for a row that no memory should hold."""
    return UserError(
        f"{TABLES[file.format]} {number} of {file.shown} is longer than {MAX_ROW >> 20} MiB; cut "
        "it, or put a text of that size there as a file of its own."
    )


def _lines(file: SourceFile) -> Iterator[tuple[int, Any]]:
    with open_source(file) as source:
        for number, line in enumerate(iter(lambda: source.readline(MAX_ROW + 1), b""), 1):
            if len(line) > MAX_ROW:
                raise too_long(file, number)
            text = line.decode("utf-8-sig")  # without the byte order mark of Windows' editors
            if not text.strip():
                continue
            try:
                yield number, json.loads(text)
            except (ValueError, RecursionError) as error:
                where = f"line {number} of {file.shown}"
                raise UserError(f"{where} is not JSON ({error}); mend or remove it.") from None


def _items(file: SourceFile) -> Iterator[tuple[int, Any]]:
    """The items of one JSON list. What is not parsed yet doubles until an item is whole."""
    decoder, decode = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")().decode
    with open_source(file) as source:
        text, at, number, end = "", 0, 0, False

        def skip(characters: str) -> str:
            """Go on to the first character that is none of these, and return it."""
            nonlocal text, at, end
            while True:
                while at < len(text) and text[at] in characters:
                    at += 1
                if at < len(text) or end:
                    return text[at : at + 1]
                grow()

        def grow() -> None:
            nonlocal text, at, end
            block = source.read(max(BLOCK_BYTES, len(text) - at))
            end = not block
            text, at = text[at:] + decode(block, final=end), 0

        skip(SPACE)
        at += 1  # the bracket
        while (following := skip(SPACE + ",")) not in ("]", ""):
            number += 1
            while True:
                try:
                    item, at = decoder.raw_decode(text, at)
                    break
                except (ValueError, RecursionError) as error:
                    if not end and len(text) - at <= MAX_ROW and isinstance(error, ValueError):
                        grow()
                        continue
                    if len(text) - at > MAX_ROW:
                        raise too_long(file, number) from None
                    where = f"item {number} of the JSON list in {file.shown}"
                    raise UserError(f"{where} is no JSON ({error}); mend it.") from None
            yield number, item
        if not following:
            raise UserError(f"{file.shown} begins as a JSON list but has no end; it was cut.")


def _cells(file: SourceFile) -> Iterator[tuple[int, Any]]:
    csv.field_size_limit(MAX_ROW)
    with open_source(file) as source:
        text = io.TextIOWrapper(source, "utf-8-sig", newline="")
        first, size, number = text.readline(MAX_ROW + 1), 0, 0

        def lines() -> Iterator[str]:
            nonlocal size
            for line in chain([first], iter(lambda: text.readline(MAX_ROW + 1), "")):
                size += len(line)
                if size > MAX_ROW:  # of all lines that a row in quotation marks spans
                    raise too_long(file, number + 1)
                yield line

        try:
            table = csv.reader(lines(), delimiter=_delimiter(first))
            columns, number = next(table, []), 1
            for number, cells in enumerate(table, 2):
                size = 0
                if len(cells) > len(columns):
                    raise UserError(
                        f"row {number} of {file.shown} has {len(cells)} cells, but the first row "
                        f"names {len(columns)} columns; put cells with {table.dialect.delimiter!r} "
                        "in them into quotation marks."
                    )
                if cells:
                    yield number, dict(zip_longest(columns, cells, fillvalue=""))
        except csv.Error as error:
            raise UserError(f"row {number + 1} of {file.shown} is no CSV ({error}).") from None


def _delimiter(header: str) -> str:
    """The one that gives most columns; spreadsheets write semicolons in half of the world."""
    return max(",;\t|", key=lambda sign: len(next(csv.reader([header], delimiter=sign), [])))
