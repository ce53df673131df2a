"""What people bring becomes documents or records, is left out in a line, or refused in one."""

import codecs
import gzip
import io
import json
import os
import re
import zipfile
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from stages.lm.core.errors import UserError
from stages.lm.settings.corpus import AUTO
from stages.lm.sources import files, isolation, reading, tables, walk, worker
from stages.lm.sources.encodings import likely_encoding
from stages.lm.sources.files import SourceFile
from stages.lm.sources.reading import read_documents, read_records
from stages.lm.sources.survey import survey
from stages.lm.text.records import Record


def zst(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


def archive(**members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return sink.getvalue()


def docx(body, head=""):
    w = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    xml = f"<?xml version='1.0'?>{head}<w:document {w}><w:body>{body}</w:body></w:document>"
    return archive(**{"word/document.xml": xml})


def paragraph(text):
    return f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>"


def epub(*chapters, names=None):
    names = names or [f"{n}.xhtml" for n in range(len(chapters))]
    items = "".join(
        f'<item id="i{n}" href="{name}" media-type="application/xhtml+xml"/>'
        for n, name in enumerate(names)
    )
    order = "".join(f'<itemref idref="i{n}"/>' for n in range(len(names)))
    return archive(
        **{
            "META-INF/container.xml": '<container><rootfile full-path="O/p.opf"/></container>',
            "O/p.opf": f"<package><manifest>{items}</manifest><spine>{order}</spine></package>",
        },
        **{f"O/{n}.xhtml": f"<p>{text}</p>" for n, text in enumerate(chapters)},
    )


def parquet(**columns):
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PAIR = {"prompt": "p", "completion": "c"}
CHAT = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "d"},
]
CHAT_PROMPT = "System: S\n\nUser: a\n\nAssistant: b\n\nUser: c\n\nAssistant:"
LATIN1 = "Die Bären mögen süßen Honig, und zwar täglich.\n".encode("latin-1") * 20

DOCUMENTS = {
    "a text": ({"input.txt": b"a\r\n\0\xff"}, [b"a\r\n\0\xff"], "20 % of the text is not UTF-8"),
    "a text with a mark of its bytes' order": ({"a.txt": b"\xef\xbb\xbfa"}, [b"\xef\xbb\xbfa"], ""),
    "notes in folders": ({"b/c.md": b"2", "a.rst": b"1", "B/d": b"3"}, [b"1", b"2", b"3"], ""),
    "names in any case": ({"b": b"2", "A": b"1", "C": b"3"}, [b"1", b"2", b"3"], ""),
    "source code": ({"m.py": b"x = 1\n", "m.weird": b"ok", "Makefile": b"a:"}, 3, ""),
    "a page": (
        {"a.html": b"<title>T</title><script>no</script>\n<p> One  <b>two</b>&amp;</p><br>three"},
        [b"One two&\n\nthree\n"],
        "",
    ),
    "a page with code and a table": (
        {"a.html": b"<pre>if a:\n    b\n</pre><table><tr><td>1</td><td>2</td></tr></table>"},
        [b"if a:\n    b\n\n\t1\t2\n"],
        "",
    ),
    "a page in another encoding": (
        {"a.htm": '<meta charset="iso-8859-1"><p>süß'.encode("latin-1")},
        ["süß\n".encode()],
        "",
    ),
    "compressed": ({"a.txt.gz": gzip.compress(b"1"), "b.zst": zst(b"2")}, [b"1", b"2"], ""),
    "compressed twice over": ({"a.gz": gzip.compress(b"1") * 2}, [b"11"], ""),
    "UTF-16 with a mark": ({"a.txt": "hä\n".encode("utf-16")}, ["hä\n".encode()], "UTF-16-LE"),
    "UTF-16 without": ({"a": "hallo\n".encode("utf-16-be")}, [b"hallo\n"], "UTF-16-BE"),
    "UTF-32": ({"a.txt": "hä".encode("utf-32")}, ["hä".encode()], "UTF-32-LE"),
    "compressed UTF-16": (
        {"a.txt.gz": gzip.compress("hallo".encode("utf-16"))},
        [b"hallo"],
        "UTF-16-LE",
    ),
    "Latin-1": ({"a.txt": LATIN1}, [LATIN1], "% of the text is not UTF-8 .*iconv -f CP1252"),
    "texts in JSON lines": (
        {"a.jsonl": codecs.BOM_UTF8 + lines({"text": "1", "id": 2}, {"text": "ü\u2028"})},
        [b"1", "ü\u2028".encode()],
        "",
    ),
    "lines of a text that is empty": (
        {"a.jsonl": lines({"text": ""}, {"text": None}, {"text": "1"})},
        [b"1"],
        "a.jsonl, line 1, a.jsonl, line 2: no text in it",
    ),
    "a JSON list of texts": ({"a.json": b'\n[\n "1",\n "2"\n]\n'}, [b"1", b"2"], ""),
    "JSON that is no rows": ({"package.json": b'{\n "name": "x"\n}\n'}, 1, ""),
    "a table": ({"a.csv": b'text,n\r\n"a\r\nb, ""c""",1\r\n'}, [b'a\r\nb, "c"'], ""),
    "a table of a spreadsheet": ({"a.csv": b"n;text\n1;a,b\n\n2;c\n"}, [b"a,b", b"c"], ""),
    "a table in UTF-16": ({"a.tsv": "id\ttext\n1\tä\n".encode("utf-16")}, ["ä".encode()], "UTF-16"),
    "a column of names": ({"a.csv": b"name\nAda\nGrace\n"}, [b"Ada", b"Grace"], ""),
    "rows that are cut": ({"a.csv": b"text,n\na\nb,2\n"}, [b"a", b"b"], ""),
    "compressed rows": ({"a.csv.gz": gzip.compress(b"text,b\n1,2\n")}, [b"1"], ""),
    "parquet": ({"a.parquet": parquet(text=["1", "ü"], n=[1, 2])}, [b"1", "ü".encode()], ""),
    "a Word file": (
        {"a.docx": docx(paragraph("ä &lt;b") + paragraph("c<w:tab/>"[:1]))},
        ["ä <b\nc\n".encode()],
        "",
    ),
    "a book": ({"a.epub": epub("one", "two")}, [b"one\n\ntwo\n\n"], ""),
    "pictures beside a text": (
        {"a.txt": b"1", "x.png": b"\x89PNG", "y.jpg": b"", "z.JPEG": b"1", "w.gif": b"1"},
        [b"1"],
        "not used: w.gif, x.png, z.JPEG: an image",
    ),
    "other things beside a text": (
        {"a.txt": b"1", "m.gguf": b"GGUF\0", "b.zip": archive(a="b"), "c": b"\x7fELF\0\1"},
        [b"1"],
        "m.gguf: a model for llama.cpp.*",
    ),
    "a model beside a text": (
        {"a.txt": b"1", "m/config.json": b"{}", "m/model.safetensors": b"1", "m/merges.txt": b"1"},
        [b"1"],
        "not used: m: a folder with a model",
    ),
    "adapters beside a text": (
        {"a.txt": b"1", "m/adapter_config.json": b"{}", "m/adapter_model.safetensors": b"1"},
        [b"1"],
        "not used: m: a folder with adapters",
    ),
    "an empty file, a hidden one and what belongs to git and DVC": (
        {"a.txt": b"1", "b.txt": b"", ".DS_Store": b"1", ".gitignore": b"1", "a.txt.dvc": b"1"},
        [b"1"],
        "b.txt: empty.*.DS_Store: hidden|.DS_Store: hidden.*b.txt: empty",
    ),
    "a table of other columns beside texts": (
        {"a.txt": b"1", "b.csv": b"date,sum\n1,2\n"},
        [b"1"],
        r"b.csv: of its columns or keys \('date', 'sum'\) none .* corpus.text",
    ),
    "a PDF without the package": ({"a.txt": b"1", "b.pdf": b"%PDF-1.4\n"}, [b"1"], "install pypdf"),
    "what is damaged beside a text": (
        {"a.txt": b"1", "b.docx": b"PK\3\4", "c.epub": docx("")},
        [b"1"],
        "b.docx: damaged.*",
    ),
}

RECORDS = {
    "records": ({"a.jsonl": lines(PAIR | {"id": 3})}, [("p", "c")], ""),
    "records with CRLF and blank lines": (
        {"a.jsonl": codecs.BOM_UTF8 + b"\r\n" + lines(PAIR).replace(b"\n", b"\r\n") + b" \n"},
        [("p", "c")],
        "",
    ),
    "an empty prompt": ({"a.jsonl": lines(PAIR | {"prompt": ""})}, [("", "c")], ""),
    "many completions": ({"a.jsonl": lines(PAIR, PAIR)}, [("p", "c")] * 2, ""),
    "no completion": (
        {"a.jsonl": lines(PAIR | {"completion": ""}, PAIR)},
        [("p", "c")],
        "a.jsonl, line 1: no completion",
    ),
    "a conversation": ({"a.jsonl": lines({"messages": CHAT})}, [(CHAT_PROMPT, "d")], ""),
    "a question": ({"a.jsonl": lines({"messages": CHAT[1:3]})}, [("a", "b")], ""),
    "no answer": (
        {"a.jsonl": lines({"messages": CHAT[:2]}, PAIR)},
        [("p", "c")],
        "line 1: no completion",
    ),
    "ShareGPT": (
        {
            "a.json": b'[{"conversations": [{"from": "human", "value": "a"}, '
            b'{"from": "gpt", "value": "b"}]}]'
        },
        [("a", "b")],
        "",
    ),
    "prompts as messages": (
        {"a.jsonl": lines({"prompt": CHAT[1:2], "completion": CHAT[2:3]})},
        [("a", "b")],
        "",
    ),
    "content in parts": (
        {
            "a.jsonl": lines(
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "text", "text": "a"}]},
                        CHAT[2],
                    ]
                }
            )
        },
        [("a", "b")],
        "",
    ),
    "alpaca": (
        {
            "a.json": b'[\n {"instruction": "i", "input": "x", "output": "o"},\n '
            b'{"instruction": "j", "input": "", "output": "o"}\n]'
        },
        [("i\n\nx", "o"), ("j", "o")],
        "",
    ),
    "questions": ({"a.csv": b"Question,Answer\nq,a\n"}, [("q", "a")], ""),
    "lines in a .json file": ({"a.json": lines(PAIR, PAIR)}, [("p", "c")] * 2, ""),
    "a list in a .jsonl file": ({"a.jsonl": json.dumps([PAIR] * 2).encode()}, [("p", "c")] * 2, ""),
    "parquet": ({"a.parquet": parquet(input=["q"], output=[3])}, [("q", "3")], ""),
    "conversations in parquet": ({"a.parquet": parquet(messages=[CHAT])}, [(CHAT_PROMPT, "d")], ""),
    "conversations in a table": (
        {
            "a.tsv": (
                'messages\tn\n"' + json.dumps(CHAT[1:3]).replace('"', '""') + '"\t1\n'
            ).encode()
        },
        [("a", "b")],
        "",
    ),
    "several shapes": (
        {"a.jsonl": lines(PAIR, {"messages": CHAT[1:3]}), "b.csv": b"prompt,response\n1,2\n"},
        [("p", "c"), ("a", "b"), ("1", "2")],
        "",
    ),
}

REFUSED = {
    "nothing usable": ({"m.gguf": b"GGUF"}, "holds nothing to learn from; .*llama.cpp"),
    "texts and records": ({"a.txt": b"1", "b.jsonl": lines(PAIR)}, "holds records .* and texts"),
    "a table of other columns": ({"a.csv": b"x,y\n1,2\n"}, "corpus.text, or corpus.prompt"),
    "a line that is no JSON": ({"a.jsonl": lines(PAIR) + b"{\n"}, r"line 2 of .*a\.jsonl is not J"),
    "a line of brackets": ({"a.jsonl": lines(PAIR) + b"[" * 100_000}, "line 2 of .* is not JSON"),
    "a list in a line": ({"a.jsonl": lines(PAIR, [1])}, "a.jsonl, line 2 is JSON, but no object"),
    "a number": ({"a.jsonl": lines(PAIR | {"completion": 1})}, "'completion' is 1, but must be"),
    "half of a character": ({"a.jsonl": b'{"text": "\\ud800"}'}, "holds half of a character"),
    "a text among records": ({"a.jsonl": lines(PAIR, {"text": "t"})}, "line 2 holds a text, but"),
    "another key": (
        {"a.jsonl": lines(PAIR, {"a": "t", "b": "t"})},
        "line 2: of its columns or keys",
    ),
    "records in Latin-1": (
        {"a.csv": b"prompt,completion\nwo,im S\xfcden der schw\xe4bischen Alb\n"},
        "is not UTF-8; it is likely CP1252: `iconv",
    ),
    "a list that is cut": ({"a.json": json.dumps([PAIR] * 2).encode()[:-1]}, "has no end"),
    "a list with an item that is cut": ({"a.json": b'[{"text": "a"}, {"te'}, "item 2 .* no JSON"),
    "more cells than columns": ({"a.csv": b"name\nDoe, J.\n"}, "row 2 .* has 2 cells"),
    "a conversation that is none": ({"a.jsonl": lines({"messages": [1]})}, "list of messages"),
    "a conversation of nobody": ({"a.jsonl": lines({"messages": [{"content": "a"}]})}, "no 'role'"),
    "a conversation with a picture": (
        {"a.jsonl": lines({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]})},
        "something else than text",
    ),
    "a cut archive": ({"a.txt.gz": gzip.compress(os.urandom(99))[:-9]}, "cannot be unpacked"),
    "a cut archive of the other kind": ({"a.zst": zst(os.urandom(99))[:-9]}, "cannot be unpacked"),
    "a forged table": (
        {"a.parquet": b"PAR1" + b"\x15\xff" * 50 + b"PAR1"},
        "a.parquet cannot be u",
    ),
    "UTF-16 that ends": ({"a.txt": "hallo".encode("utf-16") + b"\0"}, "does not go on so"),
}


def make(folder, contents):
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read(folder, reader, settings=None):
    """What was read, and everything that was told."""
    found = survey(folder, settings or AUTO)
    told = list(found.lines)
    return list(reader(found, told.append)), told


@pytest.fixture(scope="module", autouse=True)
def no_worker_is_left():
    yield
    isolation.stop()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents(tmp_path, monkeypatch, name):
    if "PDF" in name:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    contents, expected, told = DOCUMENTS[name]
    found, lines = read(make(tmp_path, contents), read_documents)
    texts = [document.text for document in found]
    assert len(texts) == expected if isinstance(expected, int) else texts == expected
    assert re.search(told, "\n".join(lines), re.DOTALL) if told else not lines


@pytest.mark.parametrize("name", RECORDS)
def test_records(tmp_path, name):
    contents, expected, told = RECORDS[name]
    found, lines = read(make(tmp_path, contents), read_records)
    assert found == [Record(*pair) for pair in expected]
    assert re.search(told, "\n".join(lines)) if told else not lines


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_a_sentence(tmp_path, name):
    contents, sentence = REFUSED[name]
    with pytest.raises(UserError, match=sentence):
        found = survey(make(tmp_path, contents))
        list((read_records if found.kind == "records" else read_documents)(found))


def test_a_conversation_keeps_its_messages(tmp_path):
    make(tmp_path, {"a.jsonl": lines({"messages": CHAT})})
    (record,), _ = read(tmp_path, read_records)
    assert record.messages == tuple((turn["role"], turn["content"]) for turn in CHAT)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"completion": "y"}, [Record("", "2")]),
        ({"prompt": "x", "completion": "y"}, [Record("1", "2")]),
        ({"text": "y"}, "2"),
        ({"text": "z"}, "no column or key as corpus.text 'z' ask"),
    ],
)
@pytest.mark.parametrize("table", ["csv", "parquet", "json"])
def test_columns_by_a_setting(tmp_path, table, settings, expected):
    data = {
        "csv": b"x,y\n1,2\n",
        "parquet": parquet(x=["1"], y=["2"]),
        "json": b'[{"x":"1","y":"2"}]',
    }
    make(tmp_path, {f"a.{table}": data[table]})
    settings = replace(AUTO, **settings)
    if "ask" in expected:
        with pytest.raises(UserError, match=expected):
            survey(tmp_path, settings)
    elif isinstance(expected, str):
        assert [document.text for document in read(tmp_path, read_documents, settings)[0]] == [b"2"]
    else:
        assert read(tmp_path, read_records, settings)[0] == expected


@pytest.mark.parametrize(
    ("encoding", "name", "text"),
    [
        ("cp1252", "CP1252", "Übergröße über alle Maße: café, naïve, señor. Garçon, déjà vu.\n"),
        ("cp1250", "CP1250", "Zażółć gęślą jaźń. Příliš žluťoučký kůň úpěl ďábelské ódy.\n"),
        ("cp1251", "CP1251", "Съешь же ещё этих мягких французских булок, да выпей чаю.\n"),
        ("shift_jis", "CP932", "これは日本語の文章です。吾輩は猫である。名前はまだ無い。\n"),
        ("gb18030", "GB18030", "我们在这里学习语言模型。今天天气很好。\n"),
    ],
)
def test_the_likely_encoding_is_named(encoding, name, text):
    assert likely_encoding(b"plain\n" * 9999 + (text * 50).encode(encoding)) == name


@pytest.mark.parametrize("settings", [{"prompt": "a"}, {"text": "a", "completion": "b"}])
def test_settings_that_contradict_each_other(settings):
    with pytest.raises(ValueError, match=r"corpus\.prompt"):
        replace(AUTO, **settings)


def test_one_file_an_empty_folder_and_none_at_all(tmp_path):
    text = make(tmp_path, {"a/input.txt": b"hello", "b/.gitkeep": b""}) / "a" / "input.txt"
    for place in (text, text.parent):
        found = survey(place)
        assert (found.kind, found.bytes, found.plain_text) == ("text", 5, text)
        assert [document.name for document in read_documents(found)] == ["input.txt"]
    found = survey(tmp_path / "b")
    assert (found.kind, found.bytes, found.plain_text, found.lines) == ("", 0, None, ())
    with pytest.raises(UserError, match="missing; put your files there"):
        survey(tmp_path / "c")


def test_names_say_where_a_document_stands(tmp_path):
    make(tmp_path, {"a/b.md": b"1", "m.csv": b"text\n1\n\n2\n", "n.jsonl": b'\n{"text": "1"}'})
    names = [document.name for document in read(tmp_path, read_documents)[0]]
    assert names == ["a/b.md", "m.csv, row 2", "m.csv, row 4", "n.jsonl, line 2"]


@pytest.mark.parametrize("text", ["äöü\n" * 99, "äöü🙂" * 99, "\u4e2d" * 300])
def test_a_long_text_comes_in_pieces_cut_between_characters(tmp_path, monkeypatch, text):
    monkeypatch.setattr(reading, "PIECE_BYTES", 100)
    found, _ = read(make(tmp_path, {"a": text.encode(), "b": b"1"}), read_documents)
    assert "".join(document.text.decode() for document in found[:-1]) == text
    assert [document.more for document in found] == [True] * (len(found) - 2) + [False, False]
    assert max(len(document.text) for document in found) < 210


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_list_is_read_in_blocks_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr(tables, "BLOCK_BYTES", size)
    rows = [{"text": f"ä[{n}]," + '"}' * n} for n in range(20)]
    make(tmp_path, {"a.json": json.dumps(rows, ensure_ascii=False, indent=1).encode()})
    found, _ = read(tmp_path, read_documents)
    assert [document.text.decode() for document in found] == [row["text"] for row in rows]


LONG = "x" * 1000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", lines({"text": LONG})),
        ("a.json", json.dumps([LONG]).encode()),
        ("a.json", b'["' + b"x" * 1000),
        ("a.csv", f"text\n{LONG}\n".encode()),
        ("a.csv", b'text\n"' + b"x\n" * 500),
        ("a.csv", b'text\n"x' + b'\n","' * 500),
        ("a.csv", LONG.encode() + b",b\n"),
    ],
)
def test_a_row_without_end_is_refused(tmp_path, monkeypatch, name, data):
    monkeypatch.setattr(tables, "MAX_ROW", 500)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 64)
    with pytest.raises(UserError, match=r"(line 1|item 1|row 2) .* longer|row [12] .* no CSV"):
        read(make(tmp_path, {name: data}), read_documents)


@pytest.mark.parametrize("pack", [gzip.compress, zst])
def test_a_compressed_file_that_expands_beyond_measure_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    with pytest.raises(UserError, match="expands to more than 100 times"):
        read(
            make(
                tmp_path,
                {
                    "a.txt.x": b"",
                    "a.zst": b"",
                    "b.gz" if pack is gzip.compress else "b.zst": pack(bytes(3 << 20)),
                },
            ),
            read_documents,
        )


def last_answer(path):
    """The last answer of the worker's process, given in this one."""
    told = io.BytesIO()
    file = SourceFile(path, path.name, path.stat().st_size, path.suffix[1:])
    worker.answer(file, None, told)
    return json.loads(told.getvalue().splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "data", "refusal"),
    [
        ("a.docx", docx(paragraph("x" * 1_000_000)), "expands to far more"),
        ("a.docx", docx(paragraph("&a;"), '<!DOCTYPE d [<!ENTITY a "aa">]>'), "declares entities"),
        ("a.docx", docx("", '<!DOCTYPE d [<!ENTITY a SYSTEM "file:///etc/passwd">]>'), "entities"),
        ("a.epub", epub("x" * 10_000, names=["0.xhtml"] * 2000), "expands to far more"),
        ("a.epub", epub("x", names=["../../../../../etc/passwd"]), "no item named"),
        ("a.docx", archive(**{f"m{n}": "" for n in range(11)}), "holds more than 10 files"),
        ("a.parquet", parquet(text=["x" * 1000] * 10_000), "expands to far more"),
        ("a.docx", docx("<a>" * 2000), "elements in elements"),
        ("a.html", b"x" * 1_000_001, "a page of more than"),
        ("a.epub", epub("x" * 1_000_001), "a page of more than"),
    ],
)
def test_books_that_expand_or_reach_out_are_refused(tmp_path, monkeypatch, name, data, refusal):
    monkeypatch.setattr(files, "FREE_BYTES", 1000)
    monkeypatch.setattr("stages.lm.sources.markup.MAX_ENTRIES", 10)
    monkeypatch.setattr("stages.lm.sources.markup.MAX_HTML", 1_000_000)
    monkeypatch.setattr(worker, "limit_time", lambda: None)
    kind, reason = last_answer(make(tmp_path, {name: data}) / name)
    assert kind == "unusable" and re.search(refusal, reason)


def test_a_file_that_ends_its_reader_is_left_out_and_the_next_is_read(tmp_path, monkeypatch):
    make(tmp_path, {"a.html": b"<p>a", "b.docx": docx(paragraph("b")), "c.html": b"<p>c"})
    found = survey(tmp_path)
    told = []
    documents = read_documents(found, told.append)
    assert next(documents).text == b"a\n"
    (process,) = isolation._idle
    process.kill()
    process.wait()
    assert [document.text for document in documents] == [b"c\n"]
    assert told == [f"not used: b.docx: {isolation.DIED}"]


def test_two_files_are_taken_apart_at_once(tmp_path):
    make(tmp_path, {"a.parquet": parquet(text=["1", "2"]), "b.parquet": parquet(text=["3", "4"])})
    both = zip(read_documents(survey(tmp_path)), read_documents(survey(tmp_path)), strict=True)
    assert all(one == other for one, other in both)


def test_a_reader_has_limits(tmp_path):
    resource = pytest.importorskip("resource")
    make(tmp_path, {"a.html": b"<p>a"})
    read(tmp_path, read_documents)
    limit = resource.prlimit(isolation._idle[0].pid, resource.RLIMIT_AS)
    assert limit == (worker.MAX_MEMORY, worker.MAX_MEMORY)


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (OSError(5, "Input/output error"), ["refused", ".*Input/output error.*left as it is"]),
        (MemoryError(), ["unusable", "more memory"]),
        (RecursionError("deep"), ["unusable", r"damaged.*\(deep\)"]),
    ],
)
def test_an_error_of_the_system_is_not_taken_for_damage(tmp_path, monkeypatch, error, answer):
    def fail(*_):
        raise error

    monkeypatch.setattr("stages.lm.sources.markup.html_text", fail)
    monkeypatch.setattr(worker, "limit_time", lambda: None)
    kind, value = last_answer(make(tmp_path, {"a.html": b"1"}) / "a.html")
    assert kind == answer[0] and re.search(answer[1], value)


def test_nothing_is_read_through_links(tmp_path):
    outside = make(tmp_path / "out", {"secret.txt": b"secret"})
    folder = make(tmp_path / "in", {"a.txt": b"1", "b/c.txt": b"2"})
    (folder / "file.txt").symlink_to(outside / "secret.txt")
    (folder / "folder").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (folder / "self").symlink_to(folder / "self")
    (folder / "again.txt").symlink_to("a.txt")
    (folder / "gone.txt").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.txt")
    found, told = read(folder, read_documents)
    assert [document.text for document in found] == [b"1", b"2"]
    text = "\n".join(told)
    assert "file.txt, folder: a link that leaves" in text and "pipe.txt: a pipe" in text
    assert "again.txt, loop: a link to what is in" in text and "gone.txt, self: a link to n" in text


def test_links_into_the_cache_of_dvc_are_read(tmp_path):
    cached = make(tmp_path, {f"cache/files/md5/ab/{'0' * 30}": b"1"}) / "cache/files/md5/ab"
    folder = make(tmp_path / "in", {})
    folder.mkdir()
    (folder / "a.txt").symlink_to(cached / ("0" * 30))
    assert [document.text for document in read(folder, read_documents)[0]] == [b"1"]


def test_a_file_that_becomes_a_pipe_does_not_block(tmp_path):
    found = survey(make(tmp_path, {"a.txt": b"1"}))
    (tmp_path / "a.txt").unlink()
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"a\.txt could not be read"):
        list(read_documents(found))


def test_deep_folders_and_many_files_are_bounded(tmp_path, monkeypatch):
    deep = "/".join("d" * 60)
    make(tmp_path, {"a": b"1", f"{deep}/b": b"2"})
    found, told = read(tmp_path, read_documents)
    assert len(found) == 1 and "below 50 others" in told[0]
    monkeypatch.setattr(walk, "MAX_FILES", 2)
    make(tmp_path, {"b": b"1", "c": b"1"})
    with pytest.raises(UserError, match="more than 2 files"):
        survey(tmp_path)


def test_what_takes_long_to_import_is_imported_when_it_is_needed(tmp_path):
    import subprocess
    import sys

    code = (
        "import sys, stages.lm.sources.reading; print({'pyarrow', 'pandas', 'pypdf', "
        "'charset_normalizer', 'numpy', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()", done.stdout


def test_pdf(tmp_path):
    pytest.importorskip("pypdf")
    stream = b"BT /F1 12 Tf 72 720 Td (Hello world) Tj ET"
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /F1 4 0 R >> >> /Contents 5 0 R >>",
        font,
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    data = b"%PDF-1.4\n"
    for number, body in enumerate(objects, 1):
        data += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    data += b"trailer << /Root 1 0 R /Size 6 >>\nstartxref\n0\n%%EOF\n"
    assert read(make(tmp_path, {"a.pdf": data}), read_documents)[0][0].text == b"Hello world\n\n"
