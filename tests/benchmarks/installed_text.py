"""A text of any size up to some 50 MB, offline: the English prose that installed packages carry.

    python tests/benchmarks/installed_text.py --bytes 5000000 --out text.txt

reads `--packages` (one or more folders; by default the running interpreter's site-packages):
docstrings and other long strings of modules, read with `ast` and never imported,
`.md`, `.rst` and `.txt` files, and the descriptions in `.json` files (of web services, mostly). The
same folders give the same bytes. For more text than the project's own packages hold, fill a folder:

    pip install --target packages --no-deps ansible botocore google-api-python-client scipy \\
        django pulumi-aws aws-cdk-lib oci sympy salt astropy pandas kubernetes nltk matplotlib
    python tests/benchmarks/installed_text.py --packages packages SITE_PACKAGES ...

Packages repeat themselves and each other, and xz finds repeats within 64 MiB: its compression would
not measure how well it predicts prose. So a paragraph is dropped when many of its runs of words
occurred in an earlier one (shingling, Broder 1997).
"""

import argparse
import ast
import gzip
import hashlib
import html
import inspect
import json
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

PROSE = (".md", ".rst", ".txt")
MIN_STRING = 200
"""Characters of a string in a module that may be prose without being a docstring."""
SHINGLE_WORDS = 5
"""Words in a run (shingle)."""
MAX_SEEN = 0.15
"""Maximum share of a paragraph's runs that occurred before."""
MIN_WORDS = 12
"""Shorter paragraphs are headings, signatures and cross-references."""
MIN_LETTERS = 0.75
"""Smallest share of letters and single spaces in prose: less is code, a table, a list of names."""
MIN_FUNCTION_WORDS = 0.2
"""Smallest share of `FUNCTION_WORDS` in English prose: less is another language or a list."""

FUNCTION_WORDS = (
    "a an and any are as at be been but by can do does each for from has have if in into is it its "
    "may more must no not of on only or other should so such than that the their then there these "
    "they this to use used was we when where which will with would you your"
)
"""Frequent English words that carry no topic."""

_FUNCTION_WORDS = frozenset(FUNCTION_WORDS.split())
_TAG = re.compile(r"</?\w[^<>]*>")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")
_BLANK_LINES = re.compile(r"\n\s*\n")
_LEGAL = re.compile(
    r"copyright|licen[sc]e|warrant(y|ies)|liab(le|ility)|redistribut|hereby|\bGPL\b|all rights",
    re.IGNORECASE,
)
_NOT_PROSE = re.compile(
    r"^\s*(>>>|\.\.\. |\$ |[|+][-=| ]|```|<\w|[=\-]{3,} +[=\-]{3,})", re.MULTILINE
)

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def main() -> None:
    """Collect documents, drop repeated paragraphs, write the text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bytes", type=int, required=True, help="size of the text, at most")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--packages",
        type=Path,
        nargs="+",
        default=[Path(sysconfig.get_path("purelib"))],
        help="folders of installed packages (default: this interpreter's)",
    )
    arguments = parser.parse_args()
    documents = {text for folder in arguments.packages for text in read_documents(folder)}
    found = sum(len(text.encode("utf-8", "ignore")) for text in documents)
    print(f"found   {len(documents):>9,} documents, {found:>13,} bytes")
    # Shuffled again after deduplication: documents that came late lost more paragraphs, and the end
    # of the text, which is held out, must not differ from the rest.
    kept = in_hash_order(distinct(in_hash_order(documents, "choice")), "place")
    left = sum(len(text.encode()) + 2 for text in kept)
    print(f"kept    {len(kept):>9,} documents, {left:>13,} bytes of distinct English prose")
    text = beginning(kept, arguments.bytes)
    arguments.out.write_bytes(text)
    print(f"written {len(text):,} bytes to {arguments.out}")
    if left < arguments.bytes:
        raise SystemExit(f"error: {arguments.bytes:,} bytes were asked for; add --packages")


def read_documents(folder: Path) -> Iterator[str]:
    """Every file of prose under a folder, and every piece of documentation in the others."""
    for file in folder.rglob("*"):
        if not file.is_file():
            continue
        if file.name.endswith(PROSE):
            yield file.read_text("utf-8", "ignore")
        elif file.name.endswith(".py"):
            yield from module_strings(file.read_bytes())
        elif file.name.endswith((".json", ".json.gz")):
            yield from json_strings(file.read_bytes())


def module_strings(source: bytes) -> Iterator[str]:
    """The docstrings and long strings of a module; of one that is not this Python's, none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the packages' strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield text
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if isinstance(value, str) and len(value) >= MIN_STRING:
                yield inspect.cleandoc(value)


def json_strings(content: bytes) -> Iterator[str]:
    """The strings in a JSON file, compressed or not, without HTML's tags."""
    try:
        values = [json.loads(gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content)]
    except (ValueError, RecursionError, OSError, EOFError):
        return
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str) and " " in value:
            yield html.unescape(_TAG.sub("", value)).strip()


def in_hash_order(documents: Iterable[str], key: str) -> list[str]:
    """A fixed pseudo-random order, which depends on `key`, so that every part is a fair sample."""

    def digest(text: str) -> bytes:
        return hashlib.sha256((key + text).encode("utf-8", "ignore")).digest()

    return sorted(documents, key=digest)


def distinct(documents: list[str]) -> Iterator[str]:
    """Each document reduced to its paragraphs of English prose that occurred in none before."""
    numbers: dict[str, int] = {}
    seen: set[int] = set()
    for document in documents:
        kept = []
        for paragraph in paragraphs(document):
            words = _WORD.findall(paragraph.lower())
            if not is_prose(paragraph, words):
                continue
            # Numbers rather than strings: the hash of a tuple of them is the same in every run.
            ids = [numbers.setdefault(word, len(numbers)) for word in words]
            ends = range(SHINGLE_WORDS, len(ids) + 1)
            shingles = [hash(tuple(ids[end - SHINGLE_WORDS : end])) for end in ends]
            repeated = sum(shingle in seen for shingle in shingles)
            seen.update(shingles)
            if repeated <= MAX_SEEN * len(shingles):
                kept.append(paragraph)
        if kept:
            yield "\n\n".join(kept)


def paragraphs(document: str) -> Iterator[str]:
    """What blank lines separate, without the indentation all its lines share."""
    for block in _BLANK_LINES.split(document.expandtabs(4).replace("\r\n", "\n")):
        lines = [line.rstrip() for line in block.strip("\n").split("\n")]
        text = inspect.cleandoc("\n" + "\n".join(lines))
        if text.replace("\n", "").isprintable():
            yield text


def is_prose(paragraph: str, words: list[str]) -> bool:
    """Whether a paragraph is English sentences rather than code, a table, a list or a licence."""
    if len(words) < MIN_WORDS or _LEGAL.search(paragraph) or _NOT_PROSE.search(paragraph):
        return False
    letters = sum(character.isalpha() for character in paragraph) + len(words)
    # Indentation does not count.
    if letters < MIN_LETTERS * len(" ".join(paragraph.split())):
        return False
    return sum(word in _FUNCTION_WORDS for word in words) >= MIN_FUNCTION_WORDS * len(words)


def beginning(documents: list[str], size: int) -> bytes:
    """As many paragraphs as fit into `size` bytes."""
    text = ("\n\n".join(documents) + "\n").encode()
    end = text.rfind(b"\n\n", 0, size + 1) + 1
    return text if len(text) <= size else text[:end]


if __name__ == "__main__":
    main()
