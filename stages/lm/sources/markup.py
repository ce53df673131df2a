"""The text of HTML, Word's .docx, .epub and PDF, without markup."""

import posixpath
import re
import urllib.parse
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import IO, BinaryIO
from xml.parsers import expat
from zipfile import ZipFile

from ..core.errors import UserError

READ_BYTES = 1 << 16
MAX_HTML = 1 << 26
MAX_ENTRIES = 100_000
MAX_DEPTH = 1000
_CHARSET = re.compile(
    rb"""<meta[^>]{,200}charset=["']?([\w-]{,40})|<\?xml[^>]{,200}encoding=["']([\w-]{,40})""", re.I
)
_SPACES = re.compile(r"\s+")
_EMPTY_LINES = re.compile(r"\n{3,}")
_UNSEEN = {"script", "style", "template", "noscript", "svg", "math", "title"}
_BLOCKS = {
    *[
        "address",
        "article",
        "aside",
        "blockquote",
        "body",
        "dd",
        "details",
        "div",
        "dl",
        "dt",
        "fieldset",
        "figcaption",
        "figure",
    ],
    *[
        "footer",
        "form",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "header",
        "hr",
        "html",
        "li",
        "main",
        "nav",
        "ol",
        "p",
        "pre",
        "section",
        "table",
        "tr",
        "ul",
    ],
}


class _PageText(HTMLParser):
    """Collects the text that a browser shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.unseen = ""
        self.pre = 0
        self.after_space = True

    def _add(self, text: str) -> None:
        self.parts.append(text)
        self.after_space = text[-1].isspace()

    def _break(self, tag: str) -> None:
        self._add("\n\n" if tag in ("p", "pre") or tag[1:].isdigit() else "\n")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _UNSEEN and not self.unseen:
            self.unseen = tag
        elif tag in _BLOCKS or tag == "br":
            self._break(tag)
        elif tag in ("td", "th"):
            self._add("\t")
        self.pre += tag == "pre"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in _UNSEEN:
            self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag == self.unseen:
            self.unseen = ""
        elif tag in _BLOCKS:
            self._break(tag)
        self.pre -= tag == "pre" and self.pre > 0

    def handle_data(self, data: str) -> None:
        if self.unseen:
            return
        if not self.pre:
            data = _SPACES.sub(" ", data)
            data = data.removeprefix(" ") if self.after_space else data
        if data:
            self._add(data)

    def text(self) -> str:
        """All of it: no spaces at ends of lines, at most one empty line."""
        lines = "\n".join(line.rstrip(" ") for line in "".join(self.parts).split("\n"))
        return _EMPTY_LINES.sub("\n\n", lines).strip("\n")


def html_text(data: bytes) -> str:
    """The text of a page. Bytes that its encoding does not have become U+FFFD."""
    found = _CHARSET.search(data[:2048])
    name = ((found[1] or found[2]) if found else b"utf-8").decode("ascii")
    page = _PageText()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        try:
            text = data.decode(name, "replace")
        except LookupError:
            text = data.decode("utf-8", "replace")
    page.feed(text)
    page.close()
    return page.text()


def read_html(source: IO[bytes]) -> Iterator[str]:
    """The text of a page, at once."""
    data = source.read(MAX_HTML + 1)
    if len(data) > MAX_HTML:
        raise UserError(f"a page of more than {MAX_HTML >> 20} MiB")
    yield html_text(data) + "\n"


def _archive(source: BinaryIO) -> ZipFile:
    archive = ZipFile(source)
    if len(archive.namelist()) > MAX_ENTRIES:
        raise UserError(f"it holds more than {MAX_ENTRIES:,} files")
    return archive


def _parser(
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None] | None = None,
    data: Callable[[str], None] | None = None,
) -> expat.XMLParserType:
    """A parser for files that nobody vouches for.

    It refuses entities, with which a small file could expand to any size, and depth without end,
    which it would have to remember.
    """
    parser = expat.ParserCreate(namespace_separator=" ")
    parser.buffer_text = True
    depth = 0

    def begin(name: str, attrs: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"its XML has more than {MAX_DEPTH:,} elements in elements")
        start(name.rpartition(" ")[2], attrs)

    def finish(name: str) -> None:
        nonlocal depth
        depth -= 1
        if end:
            end(name.rpartition(" ")[2])

    parser.StartElementHandler, parser.EndElementHandler = begin, finish
    parser.CharacterDataHandler = data

    def refuse(*_: object) -> None:
        raise UserError("its XML declares entities, which no such file needs")

    parser.EntityDeclHandler = refuse
    return parser


def read_docx(source: BinaryIO) -> Iterator[str]:
    """The paragraphs of a Word file, tables among them, without headers, footers and comments."""
    found: list[str] = []
    inside = 0

    def start(name: str, attrs: dict[str, str]) -> None:
        nonlocal inside
        inside += name == "t"
        if name in ("tab", "br", "cr"):
            found.append("\t" if name == "tab" else "\n")

    def end(name: str) -> None:
        nonlocal inside
        inside -= name == "t"
        if name == "p":
            found.append("\n")

    def data(text: str) -> None:
        if inside:
            found.append(text)

    parser = _parser(start, end, data)
    with _archive(source) as archive, archive.open("word/document.xml") as document:
        while block := document.read(READ_BYTES):
            parser.Parse(block)
            if found:
                yield "".join(found)
                found.clear()
        parser.Parse(b"", True)
    yield "".join(found)


def _elements(archive: ZipFile, name: str, wanted: str) -> list[dict[str, str]]:
    """The attributes of all elements of one kind in a small XML file of an archive."""
    found: list[dict[str, str]] = []
    parser = _parser(lambda tag, attrs: found.append(attrs) if tag == wanted else None)
    with archive.open(name) as file:
        parser.Parse(file.read(MAX_HTML), True)
    return found


def read_epub(source: BinaryIO) -> Iterator[str]:
    """The chapters of a book, in reading order."""
    with _archive(source) as archive:
        package = _elements(archive, "META-INF/container.xml", "rootfile")[0]["full-path"]
        items = {
            item["id"]: item["href"]
            for item in _elements(archive, package, "item")
            if "html" in item.get("media-type", "")
        }
        for chapter in _elements(archive, package, "itemref"):
            if chapter.get("idref") in items:
                name = urllib.parse.unquote(items[chapter["idref"]])
                inside = posixpath.normpath(posixpath.join(posixpath.dirname(package), name))
                with archive.open(inside) as page:
                    (text,) = read_html(page)
                if text.strip():
                    yield text + "\n"


def read_pdf(source: BinaryIO) -> Iterator[str]:
    """The text of each page."""
    from pypdf import PdfReader

    for page in PdfReader(source).pages:
        if text := page.extract_text():
            yield text.encode("utf-8", "ignore").decode() + "\n\n"


READERS: dict[str, Callable[[BinaryIO], Iterator[str]]] = {
    "html": read_html,
    "docx": read_docx,
    "epub": read_epub,
    "pdf": read_pdf,
}
