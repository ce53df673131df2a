"""Sound, damaged and forged files of every format that the pipeline reads; used by `sources.py`."""

import gzip
import io
import json
import os
import random
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from damage import mutate_bytes

WORDS = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
]


def prose(seed: int) -> list[str]:
    """Forty sentences."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=30)) + "." for _ in range(40)]


PROSE = prose(0)
W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MIB = 1 << 20
Files = dict[str, bytes]
"""What lies in `data/input/`, by name."""


def zipped(members: Files, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A ZIP archive."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", kind) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return sink.getvalue()


def docx(body: str, head: str = "", kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A Word file."""
    xml = (
        f'<?xml version="1.0"?>{head}<w:document xmlns:w="{W}"><w:body>{body}</w:body></w:document>'
    )
    return zipped({"word/document.xml": xml.encode()}, kind)


def said(text: str) -> str:
    """A paragraph of a Word file."""
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def epub(chapter: str, package: str = "O/p.opf", head: str = "", href: str = "0.xhtml") -> Files:
    """The members of a book."""
    item = f'<item id="i" href="{href}" media-type="application/xhtml+xml"/>'
    opf = f'{head}<package><manifest>{item}</manifest><spine><itemref idref="i"/></spine></package>'
    container = f'<container><rootfile full-path="{package}"/></container>'
    members = {"META-INF/container.xml": container, "O/p.opf": opf, "O/0.xhtml": chapter}
    return {name: text.encode() for name, text in members.items()}


def pdf(stream: bytes, entries: str = "", pages: str = "[3 0 R]") -> bytes:
    """A file of one page."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids {pages}/Count 1>>".encode(),
        b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 99 99]/Contents 4 0 R"
        b"/Resources<</Font<</F 5 0 R>>>>>>",
        f"<</Length {len(stream)} {entries}>>stream\n".encode() + stream + b"\nendstream",
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    made, places = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        places.append(len(made))
        made += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    return made + (
        b"xref\n0 6\n0000000000 65535 f \n%btrailer<</Size 6/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n"
        % (table, len(made))
    )


def parquet(table: pyarrow.Table, **options: object) -> bytes:
    """A parquet file."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, **options)
    return sink.getvalue()


def sound(seed: int = 0) -> Files:
    """A small sound file of every kind, with some 40 documents or records where it has rows."""
    sentences = prose(seed)
    text = "\n".join(sentences)
    rows = [{"text": line, "n": n} for n, line in enumerate(sentences)]
    pairs = [{"prompt": line[:20], "completion": line[20:]} for line in sentences]
    chats = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]}
        for p, c in ((line[:30], line[30:]) for line in sentences)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    page = "<html><head><title>T</title></head><body>" + "".join(f"<p>{x}</p>" for x in sentences)
    operators = "BT /F 9 Tf " + " ".join(f"({line}) Tj T*" for line in sentences) + " ET"
    return {
        "a.txt": text.encode(),
        "b.md": ("# Ünïcode\n" + text).encode(),
        "c.txt": text.encode("utf-16"),
        "d.txt": text.encode("utf-32-be"),
        "e.jsonl": lines,
        "f.json": json.dumps(rows).encode(),
        "g.jsonl": "".join(json.dumps(row) + "\n" for row in pairs).encode(),
        "h.json": json.dumps(chats).encode(),
        "i.csv": (
            "text,n\n" + "".join(f'"{line}",{n}\n' for n, line in enumerate(sentences))
        ).encode(),
        "j.tsv": (
            "prompt\tcompletion\n" + "".join(f"{x[:9]}\t{x[9:]}\n" for x in sentences)
        ).encode(),
        "k.parquet": parquet(pyarrow.table({"text": sentences, "n": list(range(40))})),
        "l.parquet": parquet(pyarrow.Table.from_pylist(chats), compression="zstd"),
        "m.html": page.encode(),
        "n.docx": docx("".join(map(said, sentences))),
        "o.epub": zipped(epub(page)),
        "p.pdf": pdf(operators.encode()),
        "q.txt.gz": gzip.compress(text.encode(), mtime=0),
        "r.jsonl.zst": pyarrow.compress(lines, "zstd", asbytes=True),
    }


def mutated(files: Files, draw: random.Random) -> Files:
    """One of these files with a few bytes changed, within its archive in half of all cases."""
    name = draw.choice(list(files))
    data = files[name]
    inside = draw.random() < 0.5
    if name.endswith((".docx", ".epub")) and inside:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {each: archive.read(each) for each in archive.namelist()}
        chosen = draw.choice(list(members))
        data = zipped(members | {chosen: mutate_bytes(members[chosen], draw)})
    elif name.endswith(".gz") and inside:
        data = gzip.compress(mutate_bytes(gzip.decompress(data), draw))
    elif name.endswith(".parquet") and inside:  # what describes the file is at its end
        (size,) = struct.unpack("<I", data[-8:-4])
        data = mutate_bytes(data, draw, list(range(len(data) - size - 8, len(data))))
    elif draw.random() < 0.2:
        data = data[: draw.randrange(len(data))]
    else:
        data = mutate_bytes(data, draw)
    return {name: data}


def bombs(outside: Path) -> Iterator[tuple[str, Callable[[], Files]]]:
    """Files that would take all memory, time or disk, or what lies outside of the folder."""
    yield from _archives(outside)
    yield from _xml(outside)
    yield from _tables()
    yield from _texts()
    yield from _pdfs(outside)


def _archives(outside: Path) -> Iterator[tuple[str, Callable[[], Files]]]:
    for kind in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield (
            f"a Word file of 400 MiB of one letter, packed by {kind}",
            lambda kind=kind: {"a.docx": docx(said("a" * (400 * MIB)), kind=kind)},
        )
    yield "one of spaces between elements", lambda: {"a.docx": docx(" " * (400 * MIB))}
    yield (
        "LZMA that wants a dictionary of 4 GiB",
        lambda: {
            "a.docx": docx("".join(map(said, PROSE)), kind=zipfile.ZIP_LZMA).replace(
                struct.pack("<BI", 93, 1 << 23), struct.pack("<BI", 93, 0xFFFFFFFF)
            )
        },
    )
    yield "a book with a chapter of 400 MiB", lambda: {"a.epub": zipped(epub("a" * (400 * MIB)))}
    chapter = "<p>" + "x" * (30 * MIB)
    members = epub(chapter)
    members["O/p.opf"] = (
        b'<package><manifest><item id="i" href="0.xhtml" media-type="application/xhtml+xml"/>'
        b"</manifest><spine>" + b'<itemref idref="i"/>' * 1000 + b"</spine></package>"
    )
    yield "a book that reads one chapter 1,000 times", lambda: {"a.epub": zipped(members)}
    yield (
        "200,000 members",
        lambda: {"a.docx": zipped({f"{n}": b"" for n in range(200_000)}, zipfile.ZIP_STORED)},
    )
    for path in (str(outside), "../" * 20 + str(outside), f"file://{outside}", "%2e%2e/" * 20):
        yield f"a package at {path[:20]}", lambda path=path: {"a.epub": zipped(epub("x", path))}
        yield (
            f"a chapter at {path[:20]}",
            lambda path=path: {"a.epub": zipped(epub("x", href=path))},
        )
    yield (
        "members named upwards",
        lambda: {
            "a.docx": zipped(
                {"../../written": b"x", "/tmp/written": b"x", "word/document.xml": b"<a/>"}
            )
        },
    )
    for size in (0, 1, 0x7FFFFFFF, 0xFFFFFFFE):
        honest = docx("".join(map(said, PROSE)))
        for offset in (20, 24, 42):
            place = honest.rfind(b"PK\x01\x02") + offset
            forged = honest[:place] + struct.pack("<I", size) + honest[place + 4 :]
            yield (
                f"a header that says {size:#x} at {offset}",
                lambda forged=forged: {"a.docx": forged},
            )
    yield "gzip of 2 GiB of zeros", lambda: {"a.txt.gz": gzip.compress(bytes(MIB), 1) * 2048}
    yield "a million empty gzip members", lambda: {"a.txt.gz": gzip.compress(b"") * 1_000_000}
    yield (
        "zstd of 1 GiB of zeros",
        lambda: {"a.txt.zst": pyarrow.compress(bytes(1 << 30), "zstd", asbytes=True)},
    )
    yield (
        "zstd that wants a window of 2 GiB",
        lambda: {"a.txt.zst": b"\x28\xb5\x2f\xfd\x00" + bytes([21 << 3]) + b"\x01\x00\x00"},
    )
    yield "a skippable frame of 4 GiB", lambda: {"a.txt.zst": b"\x50\x2a\x4d\x18\xff\xff\xff\xff"}


def _xml(outside: Path) -> Iterator[tuple[str, Callable[[], Files]]]:
    laughs = "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(12))
    heads = {
        "entities in entities": (f'<!DOCTYPE d [<!ENTITY a0 "ha">{laughs}]>', "&a12;"),
        "a file as entity": (f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{outside}">]>', "&x;"),
        "a parameter entity": (f'<!DOCTYPE d [<!ENTITY % x SYSTEM "{outside}"> %x;]>', ""),
        "a type elsewhere": (f'<!DOCTYPE d SYSTEM "file://{outside}">', "a"),
        "a type in the network": ('<!DOCTYPE d PUBLIC "x" "http://127.0.0.1:9/x.dtd">', "a"),
        "an attribute by default": (
            '<!DOCTYPE d [<!ATTLIST w:p x CDATA "' + "y" * MIB + '">]>',
            "",
        ),
        "a style sheet": ('<?xml-stylesheet href="http://127.0.0.1:9/x"?>', "a"),
    }
    for name, (head, body) in heads.items():
        yield (
            f"Word, {name}",
            lambda head=head, body=body: {
                "a.docx": docx(said(body) + "".join(map(said, PROSE)), head)
            },
        )
        book = epub("<p>" + " ".join(PROSE), head=head)
        yield f"a book, {name}", lambda book=book: {"a.epub": zipped(book)}
    bodies = {
        "a million elements in elements": "<w:p>" * 1_000_000,
        "a million attributes": "<w:p " + " ".join(f'a{n}="1"' for n in range(1_000_000)) + "/>",
        "an attribute of 200 MiB": f'<w:p a="{"x" * (200 * MIB)}"/>',
        "a name of 50 MiB": f"<w:{'x' * (50 * MIB)}/>",
        "a comment without end": "<!--" + "-" * (50 * MIB),
        "a million namespaces": "".join(f'<a xmlns:b{n}="{n}"/>' for n in range(1_000_000)),
        "an include": f'<x:include xmlns:x="http://www.w3.org/2001/XInclude" href="{outside}"/>',
    }
    for name, body in bodies.items():
        yield f"Word, {name}", lambda body=body: {"a.docx": docx(body)}
    pages = {
        "a million tags in tags": "<div>" * 1_000_000,
        "comments without end": "<!--" * 1_000_000,
        "declarations without end": "<!" + "[" * 1_000_000,
        "sections without end": "<![CDATA[" * 500_000,
        "tags without end": "<a " * 1_000_000,
        "ends without end": "</" * 1_000_000,
        "processing without end": "<?" * 1_000_000,
        "quotes without end": '<a b="' * 500_000,
        "attributes without values": "<a " + "b " * 1_000_000 + ">x",
        "references": "&#x110000;&#99999999999999;&nope" * 100_000,
        "spaces": "<p>x" + " " * (20 * MIB) + "y",
        "scripts without end": "<script>" * 500_000,
        "65 MiB": "<p>" + "x" * (65 * MIB),
        "an odd encoding": '<meta charset="unicode_escape"><p>\\N{DIGIT ONE}\xff',
        "zlib as an encoding": '<meta charset="zlib_codec"><p>\xff',
    }
    for name, page in pages.items():
        yield f"a page, {name}", lambda page=page: {"a.html": page.encode("latin-1")}
    yield "a page in a book, tags without end", lambda: {"a.epub": zipped(epub("<a " * 1_000_000))}


def _tables() -> Iterator[tuple[str, Callable[[], Files]]]:
    yield (
        "a CSV of a billion rows, compressed",
        lambda: {
            "a.csv.gz": gzip.compress(b"text\n") + gzip.compress(b"a\n" * (MIB // 2), 6) * 1907
        },
    )
    yield "a CSV of 3 million rows", lambda: {"a.csv": b"text\n" + b"a\n" * 3_000_000}
    yield (
        "a CSV of 3 million different rows",
        lambda: {"a.csv": b"text\n" + b"".join(b"%d\n" % n for n in range(3_000_000))},
    )
    yield "a quotation mark without end", lambda: {"a.csv": b'text,n\n"' + b"a,b\n" * (20 * MIB)}
    yield "a row of 50 MiB", lambda: {"a.csv": b"text\n" + b"a" * (50 * MIB)}
    yield "a million columns", lambda: {"a.csv": b"a," * 1_000_000 + b"text\n" + b"1,\n" * 100}
    yield "a first row of 50 MiB", lambda: {"a.csv": b"a," * (25 * MIB)}
    yield "zero bytes", lambda: {"a.csv": b"text\n" + bytes(1000)}
    yield "carriage returns alone", lambda: {"a.csv": b"text\r" + b"a\r" * 1_000_000}
    yield "a line of JSON of 50 MiB", lambda: {"a.jsonl": b'{"text": "' + b"a" * (50 * MIB) + b'"}'}
    yield "a million brackets", lambda: {"a.json": b"[" * 1_000_000}
    yield "a million braces", lambda: {"a.jsonl": b'{"text":' * 1_000_000}
    yield "a million commas", lambda: {"a.json": b"[" + b"," * 10_000_000 + b"]"}
    yield "a number of a million digits", lambda: {"a.jsonl": b'{"text": ' + b"1" * MIB + b"}"}
    yield "a list whose item never ends", lambda: {"a.json": b'[{"text": "' + b"a" * (40 * MIB)}
    yield (
        "a million keys",
        lambda: {"a.jsonl": json.dumps({f"{n}": n for n in range(600_000)}).encode() + b"\n"},
    )
    yield (
        "keys that differ in every row",
        lambda: {"a.jsonl": b"".join(b'{"text": "a", "%d": 1}\n' % n for n in range(300_000))},
    )
    yield "half characters", lambda: {"a.jsonl": b'{"text": "\\ud800\\udc00\\ud800"}\n' * 50}
    yield (
        "300,000 records",
        lambda: {
            "a.jsonl": b"".join(
                b'{"prompt": "%d", "completion": "a"}\n' % n for n in range(300_000)
            )
        },
    )
    yield (
        "parquet, 50 million rows in few bytes",
        lambda: {
            "a.parquet": parquet(
                pyarrow.table(
                    {
                        "text": pyarrow.DictionaryArray.from_arrays(
                            np.zeros(50_000_000, np.int8), ["a" * 100]
                        )
                    }
                )
            )
        },
    )
    yield (
        "parquet, a cell of 300 MiB",
        lambda: {
            "a.parquet": parquet(pyarrow.table({"text": ["a" * (300 * MIB)]}), compression="zstd")
        },
    )
    yield (
        "parquet, a list of 20 million",
        lambda: {
            "a.parquet": parquet(
                pyarrow.table({"messages": [["x"] * 20_000_000]}), compression="zstd"
            )
        },
    )
    yield (
        "parquet, 20,000 columns",
        lambda: {"a.parquet": parquet(pyarrow.table({f"{n}": ["a"] for n in range(20_000)}))},
    )
    honest = parquet(pyarrow.table({"text": PROSE}))
    for size in (0, 1, len(honest), 0x7FFFFFFF, 0xFFFFFFFF):
        yield (
            f"parquet, a footer of {size:#x} bytes",
            lambda size=size: {"a.parquet": honest[:-8] + struct.pack("<I", size) + b"PAR1"},
        )


def _texts() -> Iterator[tuple[str, Callable[[], Files]]]:
    text = "\n".join(PROSE).encode()
    yield "UTF-16 with half characters", lambda: {"a.txt": b"\xff\xfe" + b"\x00\xd8" * 500}
    yield "UTF-32 beyond all characters", lambda: {"a.txt": b"\xff\xfe\0\0" + b"\xff" * 400}
    yield "an odd number of bytes", lambda: {"a.txt": ("x" * 500).encode("utf-16")[:-1]}
    yield "zero bytes", lambda: {"a.txt": bytes(10 * MIB)}
    yield "noise", lambda: {"a.txt": random.Random(1).randbytes(MIB)}
    yield "5,000 files", lambda: {f"{n}.txt": text[n % 99 :] for n in range(5000)}
    yield (
        "names that turn text around",
        lambda: {
            "\u202egnp.txt": text,
            "a\nb\x1b[2J.jsonl": b"{",
            "-rf.txt": text,
            "x" * 250 + ".txt": text,
        },
    )
    yield (
        "400 documents nearly alike",
        lambda: {f"{n}.txt": text * 20 + b"%d" % n for n in range(400)},
    )


def _pdfs(outside: Path) -> Iterator[tuple[str, Callable[[], Files]]]:
    text = b"BT /F 9 Tf (" + b"a" * 100 + b") Tj ET "
    yield (
        "PDF, a stream of 500 MiB",
        lambda: {"a.pdf": pdf(zlib.compress(bytes(500 * MIB), 1), "/Filter/FlateDecode")},
    )
    yield (
        "PDF, a million texts",
        lambda: {"a.pdf": pdf(zlib.compress(text * 1_000_000), "/Filter/FlateDecode")},
    )
    yield (
        "PDF, compressed twice",
        lambda: {
            "a.pdf": pdf(
                zlib.compress(zlib.compress(bytes(900 * MIB), 1)),
                "/Filter[/FlateDecode/FlateDecode]",
            )
        },
    )
    yield "PDF, pages in a circle", lambda: {"a.pdf": pdf(text, pages="[2 0 R 3 0 R]")}
    yield "PDF, a million pages", lambda: {"a.pdf": pdf(text, pages="[" + "3 0 R " * 300_000 + "]")}
    yield "PDF, a file elsewhere", lambda: {"a.pdf": pdf(b"", f"/F({outside})/FFilter/X")}
    yield (
        "PDF, a script",
        lambda: {
            "a.pdf": pdf(text).replace(
                b"/Catalog",
                b"/Catalog/OpenAction<</S/Launch/F(/bin/sh)>>/Names<</JavaScript 9 0 R>>",
            )
        },
    )
    yield "PDF, brackets in brackets", lambda: {"a.pdf": pdf(b"[" * 200_000)}
    yield "PDF, a length of 4 GiB", lambda: {"a.pdf": pdf(text, "/Length 4294967295")}
    yield (
        "PDF, a predictor of a billion columns",
        lambda: {
            "a.pdf": pdf(
                zlib.compress(bytes(1000)),
                "/Filter/FlateDecode/DecodeParms<</Predictor 12/Columns 1000000000>>",
            )
        },
    )


def special(outside: Path) -> dict[str, Callable[[Path], None]]:
    """What is no file, or leads out of the folder: each makes it at a path."""

    def listening(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))

    def in_folder(path: Path) -> None:
        path.mkdir()
        (path / "a.txt").symlink_to(outside)

    def deep(path: Path) -> None:
        for _ in range(60):
            path.mkdir()
            path = path / "d"
        path.write_text("x" * 500)

    return {
        "a link to a file outside": lambda path: path.symlink_to(outside),
        "a link to a folder outside": lambda path: path.symlink_to(outside.parent),
        "a link upwards": lambda path: path.symlink_to("../../.."),
        "a link to itself": lambda path: path.symlink_to(path),
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to memory": lambda path: path.symlink_to("/proc/self/mem"),
        "a link in a folder": in_folder,
        "a pipe": lambda path: os.mkfifo(path),
        "a socket": listening,
        "a device": lambda path: os.mknod(path, 0o20666, os.makedev(1, 5)),
        "60 folders in folders": deep,
        "a name that is not UTF-8": lambda path: Path(
            os.fsdecode(os.fsencode(path.parent) + b"/\xff\xfe.txt")
        ).write_text("\n".join(PROSE)),
    }
