"""What a file is, by its name and its first bytes."""

from .encodings import wide_encoding

HEAD_BYTES = 4096
PACKINGS = {".gz": "gz", ".zst": "zst", ".zstd": "zst"}
FORMATS = {
    **{".jsonl": "lines", ".ndjson": "lines", ".json": "json"},
    **{".csv": "csv", ".tsv": "csv", ".tab": "csv", ".parquet": "parquet"},
    **{".html": "html", ".htm": "html", ".xhtml": "html"},
    **{".docx": "docx", ".epub": "epub", ".pdf": "pdf"},
}
TEXT = {".txt", ".text", ".md", ".markdown", ".rst"}
"""A file of this name is a text, whatever it holds."""

WEIGHTS = "weights of a model; those to start from belong into data/base/"
ARCHIVE = "an archive; unpack it there"
IMAGE = "an image, which holds no text"
SOUND = "sound or film, which holds no text"
PROGRAM = "a program or compiled code"
_GROUPS = {
    WEIGHTS: ".safetensors .pt .pth .ckpt .onnx .h5 .npz .npy .pkl .pickle .tflite",
    "a model for llama.cpp, which is no text; take the weights it was made from": ".gguf .ggml",
    ARCHIVE: ".zip .tar .tgz .tbz2 .txz .7z .rar .bz2 .xz .lz4 .br .z .cab .iso .dmg .jar .whl",
    IMAGE: ".png .jpg .jpeg .gif .webp .bmp .tif .tiff .ico .heic .avif .psd",
    SOUND: ".mp3 .wav .flac .ogg .m4a .opus .aac .mp4 .mkv .avi .mov .webm",
    PROGRAM: ".exe .dll .so .dylib .o .a .pyc .class .wasm",
    "a font": ".ttf .otf .woff .woff2",
    "a spreadsheet; export it as CSV": ".xlsx .xls .xlsm .ods .numbers",
    "slides; export them as PDF or text": ".pptx .ppt .odp .key",
    "a document of another program; save it as .docx or .txt": ".doc .odt .rtf .pages .wpd",
    "an e-book of another kind; convert it to .epub": ".mobi .azw .azw3 .djvu",
    "a database; export its table as CSV": ".sqlite .sqlite3 .db .duckdb .mdb",
    "a table of another kind; save it as .parquet or .csv": ".arrow .feather .orc .avro .ipc",
}
UNUSABLE = {suffix: what for what, suffixes in _GROUPS.items() for suffix in suffixes.split()}
_MAGIC = {
    b"GGUF": UNUSABLE[".gguf"],
    b"\x89PNG": IMAGE,
    b"\xff\xd8\xff": IMAGE,
    b"GIF87a": IMAGE,
    b"GIF89a": IMAGE,
    b"RIFF": SOUND,
    b"OggS": SOUND,
    b"fLaC": SOUND,
    b"PK\x03\x04": ARCHIVE,
    b"7z\xbc\xaf": ARCHIVE,
    b"Rar!": ARCHIVE,
    b"\xfd7zXZ": ARCHIVE,
    b"\x1f\x8b": "compressed; name it with .gz at the end",
    b"\x28\xb5\x2f\xfd": "compressed; name it with .zst at the end",
    b"\x7fELF": PROGRAM,
    b"SQLite format 3": UNUSABLE[".db"],
    b"PAR1": "a table; name it with .parquet at the end",
    b"%PDF-": "a PDF; name it with .pdf at the end",
    b"\xd0\xcf\x11\xe0": UNUSABLE[".doc"],
}
_BEGINNINGS = {"parquet": b"PAR1", "docx": b"PK", "epub": b"PK", "pdf": b"%PDF-"}
_CONTROLS = bytes({*range(32), 127} - set(b"\t\n\v\f\r\b\x1b"))


def split_packing(name: str) -> tuple[str, str]:
    """The name without `.gz` or `.zst`, and `gz`, `zst` or ""."""
    for suffix, packing in PACKINGS.items():
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], packing
    return name, ""


def suffix_of(name: str) -> str:
    """`.txt` of `a/b.TXT`; "" if there is none."""
    last = name.rsplit("/", 1)[-1].lower()
    return last[last.rindex(".") :] if "." in last[1:] else ""


def format_of(name: str, head: bytes) -> tuple[str, str]:
    """The format and encoding of a file (see `SourceFile`); `json` may be lines, a list, or text.

    `name` is without packing; `head` holds the first bytes, unpacked.

    Raises:
        ValueError: it cannot be used; says what it is.
    """
    suffix, encoding = suffix_of(name), wide_encoding(head)
    if suffix in UNUSABLE:
        raise ValueError(UNUSABLE[suffix])
    known = FORMATS.get(suffix, "")
    if known in _BEGINNINGS:
        # Readers of PDF look for its mark in the first kilobyte.
        if _BEGINNINGS[known] in head[: 1024 if known == "pdf" else 4]:
            return known, ""
        raise ValueError(f"no {known}, whatever its name says; it was cut or damaged")
    named = known or suffix in TEXT
    if encoding or (named and (b"\0" not in head or not _magic(head))):
        return known or "plain", encoding
    if what := _magic(head):
        raise ValueError(what)
    if head.translate(None, _CONTROLS) != head:
        raise ValueError("no text and of no kind that is known here")
    return "plain", ""


def _magic(head: bytes) -> str:
    if head[257:262] == b"ustar":
        return ARCHIVE
    return next((what for magic, what in _MAGIC.items() if head.startswith(magic)), "")
