"""Damaged and forged files: each is refused with one sentence, or proved harmless.

    python tests/benchmarks/damage.py                # all of it; about half an hour on one core
    python tests/benchmarks/damage.py --mutated 1000 --every 50

Damaged: every truncation and every flipped bit of a small checkpoint, quantized model, training
state, token array, `merges.npy`, `meta.json` and `tokenizer.tiktoken`. Held is a sentence
(`UserError`, one line) that names the file and a remedy, or a load whose every value is equal; a
damaged training state lies unchanged under another name afterwards.

Forged: files made to run code, to take memory or to take time, shapes and settings that lie, and
mutated files (bytes, instructions of the pickle with the digest made right again, ZIP headers,
values). Held is a sentence, an equal load, or, where the digest is right, another model that writes
text; and nothing is executed, written or imported, within 10 s and 2 GB.
"""

import argparse
import io
import json
import os
import pickle
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from isolation import held, run_isolated, watched

from stages.lm.core.artifact import content_digest, read_artifact, write_artifact
from stages.lm.core.errors import UserError
from stages.lm.core.pickle_reader import read_tensors_file
from stages.lm.data.dataset import TokenData, split_meta, token_dtype, token_file, write_meta
from stages.lm.data.meta import TokenizerMeta
from stages.lm.data.splits import SPLITS
from stages.lm.inference.generation import SamplingSettings, generate_text
from stages.lm.inference.loading import load_model
from stages.lm.model import checkpoint
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.config import ModelConfig
from stages.lm.model.initialization import init_weights
from stages.lm.model.transformer import Transformer
from stages.lm.quantization import quantized_model
from stages.lm.quantization.quantized_model import quantize_checkpoint
from stages.lm.text.tokenizer import PATTERNS, BytePairTokenizer
from stages.lm.training.resume import ResumeStore, RunIdentity

KINDS = {checkpoint.KIND: checkpoint.VERSION, quantized_model.KIND: quantized_model.VERSION}


# Small files --------------------------------------------------------------------------------------


def make_files(folder: Path) -> dict[str, Callable[[], str]]:
    """Small files of every kind in `folder`, and for each how to read it: all its values."""
    shape = {"context": 8, "layers": 1, "heads": 2, "kv_heads": 1, "head_size": 4, "width": 8}
    config = ModelConfig(
        arch="qwen3", vocab_size=256, ff_width=8, tie_embeddings=True, dropout=0.0, **shape
    )
    model = Transformer(config)
    init_weights(model, torch.Generator().manual_seed(0))
    ranks = {bytes([byte]): byte for byte in range(256)}
    tokenizer = BytePairTokenizer(ranks, PATTERNS["gpt-2"], "bpe")
    parts = TokenizerMeta("bpe", tokenizer.pattern).stored(tokenizer.to_text())
    provenance = {"train": {"lr": 0.01}, "metrics": {"epochs": 1, "best_epoch": 1}}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    checkpoint = Checkpoint(config, weights, parts, provenance)
    checkpoint.save(folder / "checkpoint.pt")
    quantize_checkpoint(checkpoint, "int8").save(folder / "quantized.pt")
    progress = {"step": 5, "row_losses": [1.5, 2.5], "log": ["a line"], "finished": False}
    store = ResumeStore(folder / "resume", RunIdentity({"train.lr": 0.01}))
    store.save({"progress": progress, "best": weights, "random": torch.get_rng_state()[:500]})
    tokens = folder / "models" / "tokens"
    splits = {}
    for split, size in zip(SPLITS, (1500, 100, 100), strict=True):
        ids = random.Random(1).choices(range(256), k=size)
        with token_file(tokens / f"{split}.npy", token_dtype(256)) as file:
            file.append(ids)
        splits[split] = split_meta(tokens, split, size, size)
    name = TokenizerMeta("bpe", tokenizer.pattern)
    write_meta(tokens, name, tokenizer.to_text(), tokenizer.merges(), splits)
    # torch imports parts of itself at first use.
    repr(torch.zeros(1)), writes_text(folder / "checkpoint.pt")

    def read_tokens() -> str:
        data = TokenData.load(tokens)
        arrays = [getattr(data, name).tolist() for name in (*SPLITS, "merges")]
        return content_digest([arrays, json.dumps(data.meta.to_json()), data.vocabulary])

    def read_state() -> str:
        content, message = store.load()
        if content is not None:
            return content_digest(content)
        aside = store.path.with_name("state.damaged-1.pt")
        if store.path.exists() or not aside.exists():
            raise AssertionError("the damaged state was not set aside")
        aside.rename(store.path)  # so the caller sees that its bytes are the damaged ones
        raise UserError(message)

    return {
        "checkpoint.pt": partial(read_model, folder / "checkpoint.pt"),
        "quantized.pt": partial(read_model, folder / "quantized.pt"),
        str(store.path.relative_to(folder)): read_state,
        "models/tokens/train.npy": read_tokens,
        "models/tokens/merges.npy": read_tokens,
        "models/tokens/meta.json": read_tokens,
        "models/tokens/tokenizer.tiktoken": read_tokens,
    }


def read_model(path: Path) -> str:
    """A digest of all contents of a model file."""
    loaded = load_model(path)
    model, tokenizer = loaded.model, loaded.tokenizer
    values = [dict(model.state_dict()), vars(model.config), loaded.scheme, loaded.provenance]
    return content_digest([*values, tokenizer.tokens, tokenizer.pattern, tokenizer.name])


def outcome(path: Path, read: Callable[[], str], expected: str) -> str:
    """Read the file and say how it went: `refused`, `equal`, `other` or `FAILED: why`."""
    try:
        value = watched(read)
    except UserError as error:
        message = str(error)
        if isinstance(error.__cause__, MemoryError):
            return "FAILED: nothing but the limit on memory stopped it"
        if "\n" in message or not any(name in message for name in (path.name, path.parent.name)):
            return f"FAILED: {message!r} does not name the file in one line"
        remedy = any(word in message for word in ("`dvc repro`", "moved to", "Remove"))
        return "refused" if remedy else f"FAILED: {message!r} names no remedy"
    return "equal" if value == expected else "other"


def model_outcome(path: Path, expected: str) -> str:
    """The same for a model file whose digest may be right, which may then be another model."""
    result = outcome(path, partial(read_model, path), expected)
    return watched(partial(writes_text, path)) if result == "other" else result


def writes_text(path: Path) -> str:
    """A model that is another one than it was must still be one."""
    loaded = load_model(path)
    settings = SamplingSettings(temperature=0.8, top_k=0, top_p=0.95)
    try:
        generate_text(loaded, "Some text", 12, settings, seed=1)
    except UserError:
        return "another model, refused as it writes"
    return "another model that writes text"


# Damage -------------------------------------------------------------------------------------------


def damaged(path: Path, read: Callable[[], str], every: int = 1) -> tuple[int, Callable]:
    """The number of truncations and flipped bits of a file, and the outcome of each.

    With `every`, only one in so many of the flips and truncations.
    """
    whole, expected = path.read_bytes(), read()
    flips = range(0, 8 * len(whole), every)
    cuts = range(0, len(whole), every)

    def case(number: int) -> str:
        content = bytearray(whole)
        if number < len(flips):
            content[flips[number] // 8] ^= 1 << flips[number] % 8
        else:
            del content[cuts[number - len(flips)] :]
        path.write_bytes(content)
        result = outcome(path, read, expected)
        kept = path.read_bytes() == content
        path.write_bytes(whole)
        if result == "other" or not kept:
            return f"FAILED: {'other values' if kept else 'the damaged file is gone'}"
        return result

    return len(flips) + len(cuts), case


# Forgery ------------------------------------------------------------------------------------------


def archive(program: bytes, numbers: dict[str, bytes] | None = None) -> bytes:
    """A file as `torch.save` lays it out, around any pickle."""
    file = io.BytesIO()
    entries = {"data.pkl": program, "byteorder": b"little", "version": b"3\n"}
    entries |= {f"data/{key}": data for key, data in (numbers or {}).items()}
    with zipfile.ZipFile(file, "w") as written:
        for name, data in entries.items():
            written.writestr(f"archive/{name}", data)
    return file.getvalue()


def pickled(body: bytes) -> bytes:
    """A pickle of protocol 2 around `body`, whose value is the content of a file."""
    keys = {"format": "checkpoint", "version": 1, "digest": "0" * 64}
    return pickle.dumps(keys, 2)[:-1] + text("content") + body + b"s."


def text(value: str) -> bytes:
    """The instruction that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def tensor(shape: bytes, strides: bytes, count: int = 4, key: str = "0", offset: int = 0) -> bytes:
    """The instructions that build a float32 tensor."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu")
    storage += b"J" + struct.pack("<i", count) + b"tQ"
    rest = b"K" + bytes([offset]) + shape + strides + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def forged_pickles() -> Iterator[tuple[str, bytes]]:
    """Files whose pickle would run code, or take memory or time without end."""
    import socket
    import subprocess

    calls = [
        *[
            Call(os.system, "touch /tmp/executed"),
            Call(eval, "1+1"),
            Call(exec, "import antigravity"),
        ],
        *[Call(subprocess.call, ["true"]), Call(socket.create_connection, ("127.0.0.1", 9))],
        *[Call(open, "/tmp/executed", "w"), Call(getattr, "", "join"), Call(bytearray, 1 << 40)],
        *[Call(torch.load, "x"), Call(torch.empty, (1 << 40,)), Call(Path.touch, Path("executed"))],
        *[Call(__import__, "antigravity"), Call(range, 1 << 60), Call(torch.hub.load, "a/b", "c")],
    ]
    for call in calls:
        for protocol in range(6):
            name = f"call of {call.call[0]!r:.30}, protocol {protocol}"
            yield name, archive(pickle.dumps({"content": call}, protocol))
            yield name + ", bare", pickle.dumps({"content": call}, protocol)
    for name in ("posix\nsystem", "builtins\neval", "torch\nload", "torch.serialization\nload"):
        call = b"c" + name.encode() + b"\n" + text("1+1") + b"\x85R"
        yield f"call of {name.split()}", archive(pickled(call))
        yield (
            f"call by INST of {name.split()}",
            archive(pickled(b"(" + text("1+1") + b"i" + name.encode() + b"\n")),
        )
    grow = {"lists": (b"](", b"e"), "tuples": (b"(", b"t")}
    for name, (begin, end) in grow.items():
        body = b"K\x01q\x00"
        for level in range(40):
            body += begin + b"h%c" % level * 10 + end + b"q%c" % (level + 1)
        yield f"billion laughs of {name}", archive(pickled(body))
        yield f"billion laughs of {name} as a key", archive(pickled(b"}" + body + b"K\x01s"))
        yield f"billion laughs of {name} as a shape", archive(pickled(tensor(body, b")")))
        yield f"billion laughs of {name} as a storage", archive(pickled(body + b"Q"))
    yield "a list in itself", archive(pickled(b"]q\x00h\x00a"))
    yield "a giant place to remember", archive(pickled(b"Nr\xff\xff\xff\xff"))
    big = struct.pack("<Q", 1 << 40)
    for name, code in {
        **{"bytes": b"\x8e" + big, "bytearray": b"\x96" + big, "text": b"\x8d" + big},
        **{"short text": b"X\xff\xff\xff\xff", "number": b"\x8b\xff\xff\xff\x7f"},
        **{"frame": b"\x95" + big, "string": b"T\xff\xff\xff\x7f"},
    }.items():
        yield f"{name} of a gigantic length", archive(pickled(code))
    for name, code in {"lists": b"](", "marks": b"(", "dicts": b"}K\x01"}.items():
        end = {"lists": b"e", "marks": b"", "dicts": b"s"}[name]
        for depth in (100, 2_000, 300_000):
            yield f"{depth} nested {name}", archive(pickled(code * depth + b"N" + end * depth))
    for name, code in {"dicts": b"}", "lists": b"]", "marks": b"(", "None": b"N"}.items():
        yield f"16 million {name}", archive(pickled(code * ((16 << 20) - 200)))
    yield "too long a pickle", archive(pickled(text("x" * (40 << 20))))
    word = text("x" * 1_000_000) + b"q\x00"
    yield "a long text again and again", archive(pickled(b"](" + word + b"h\x00" * 500_000 + b"e"))
    copies = b"ccollections\nOrderedDict\nq\x00"
    items = b"".join(b"M" + struct.pack("<H", item) + b"N" for item in range(60_000))
    full = b"}(" + items + b"uq\x01"
    yield (
        "a dict copied again",
        archive(pickled(b"](" + copies + full + b"h\x00h\x01\x85R" * 50_000)),
    )
    for name, function in {"eval": "builtins\neval", "dict": "collections\nOrderedDict"}.items():
        body = b"c" + function.encode() + b"\n" + text("[1]") + b"\x85R"
        yield f"arguments for {name}", archive(pickled(body))
    four = {"0": bytes(16)}
    shape, long = b"K\x04\x85", b"\x8a\x09" + (1 << 70).to_bytes(9, "little")
    good = tensor(shape, b"K\x01\x85")
    for name, body in {
        "stride 0": tensor(b"J\xff\xff\xff\x7f\x85", b"K\x00\x85"),
        "stride 0 and count": tensor(b"J\xff\xff\xff\x7f\x85", b"K\x00\x85", count=2**31 - 1),
        "an offset": tensor(b"K\x02\x85", b"K\x01\x85", offset=2),
        "a larger count": tensor(b"K\x08\x85", b"K\x01\x85", count=8),
        "a negative shape": tensor(b"J\xfc\xff\xff\xff\x85", b"K\x01\x85"),
        "two negative sizes": tensor(b"J\xfe\xff\xff\xffJ\xfe\xff\xff\xff\x86", b"K\x01K\x01\x86"),
        "a shape of texts": tensor(long + text("aaaa") + b"\x86", b"K\x01K\x01\x86"),
        "a shape of fractions": tensor(b"G" + struct.pack(">d", 4.0) + b"\x85", b"K\x01\x85"),
        "an endless shape": tensor(b"(" + long * 100_000 + b"t", b")"),
        "an endless shape of ones": tensor(b"(" + b"K\x01" * 500_000 + b"t", b")"),
        "zero times endless": tensor(b"K\x00" + long + long + b"\x87", b")", count=0),
        "a place elsewhere": tensor(shape, b"K\x01\x85", key="../data.pkl"),
        "a place at the root": tensor(shape, b"K\x01\x85", key="/etc/passwd"),
        "a list as a place": good.replace(text("0"), b"]"),
        "no storage": good.replace(b"tQ", b"t"),
        "numbers twice": b"](" + good * 2 + b"e",
        "an item set": good + b"K\x00" + b"](K\x01e" + b"s",
        "an item set by a list": good + b"](K\x01K\x02eK\x05s",
        "one remembered": b"](" + good + b"q\x05" + b"h\x05" * 100_000 + b"e",
        "arguments remembered": good[:-1] + b"q\x06Rctorch._utils\n_rebuild_tensor_v2\nh\x06R",
        "a tensor as arguments": b"ccollections\nOrderedDict\n" + good + b"R",
    }.items():
        yield f"tensor: {name}", archive(pickled(body), four)
    numbers = {"0": bytes(4 << 20)}
    rows = tensor(b"J\x00\x00\x10\x00\x85", b"K\x01\x85", count=1 << 20)
    yield "a tensor for the document", archive(b"\x80\x02" + rows + b".", numbers)
    version = pickled(b"}").replace(b"K\x01", good, 1)
    yield "a tensor for the version", archive(version, four)
    yield "no end", archive(pickled(b"}")[:-1])
    yield "two values", archive(pickled(b"}")[:-1] + b"N.")
    yield "nothing", archive(b"")
    yield "an end alone", archive(b".")


def forged_archives(honest: bytes) -> Iterator[tuple[str, bytes]]:
    """Files whose ZIP directory is forged; `honest` is a valid checkpoint."""
    with zipfile.ZipFile(io.BytesIO(honest)) as file:
        entries = {entry.filename: file.read(entry) for entry in file.infolist()}
    first = next(iter(entries))

    def zipped(changes: Callable[[zipfile.ZipFile], None], **rest: Any) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", **rest) as file:
            for name, data in entries.items():
                file.writestr(name, data)
            changes(file)
        return out.getvalue()

    deflated = {"compression": zipfile.ZIP_DEFLATED}
    yield "compressed", zipped(lambda file: None, **deflated)
    yield "bzip2", zipped(lambda file: None, compression=zipfile.ZIP_BZIP2)
    zeros = bytes(200 << 20)
    yield "a compressed bomb", zipped(lambda file: file.writestr("archive/x", zeros), **deflated)
    yield "a duplicate", zipped(lambda file: file.writestr(first, b"other"))
    yield "an absolute path", zipped(lambda file: file.writestr("/tmp/executed", b"x"))
    yield "a path upwards", zipped(lambda file: file.writestr("../../executed", b"x"))
    yield "a second pickle", zipped(lambda file: file.writestr("other/data.pkl", b"N."))
    yield "a comment", zipped(lambda file: setattr(file, "comment", b"x" * 65_535))
    yield "something before", b"MZ" + bytes(1000) + honest
    yield "something after", honest + bytes(1000)
    yield "twice", honest + honest
    for name, value in {"size": 24, "compressed size": 20, "crc": 16, "place": 42}.items():
        for number in (0, 1, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF):
            forged = bytearray(honest)
            start = -1
            while (start := forged.find(b"PK\x01\x02", start + 1)) >= 0:
                forged[start + value : start + value + 4] = struct.pack("<I", number)
            yield f"every {name} is {number}", bytes(forged)
    for flags in (1, 8, 0x20, 0x40, 0x800, 0x2000):
        forged = bytearray(honest)
        start = -1
        while (start := forged.find(b"PK\x01\x02", start + 1)) >= 0:
            forged[start + 8 : start + 10] = struct.pack("<H", flags)
        yield f"every entry has flags {flags}", bytes(forged)
    # ZIP64: sizes of 2^40 in an extra field that the 32-bit fields point to.
    for size in (1 << 33, 1 << 40, (1 << 64) - 1):
        extra = struct.pack("<HHQQQ", 1, 24, size, size, 0)
        start = honest.find(b"PK\x01\x02")
        header = bytearray(honest[start : start + 46])
        name_length, extra_length = struct.unpack("<HH", header[28:32])
        header[20:28] = b"\xff" * 8
        header[30:32] = struct.pack("<H", len(extra))
        name_end = start + 46 + name_length
        changed = bytes(header) + honest[start + 46 : name_end] + extra
        forged = bytearray(honest[:start] + changed + honest[name_end + extra_length :])
        end = forged.rfind(b"PK\x05\x06")
        grown = len(forged) - len(honest)
        forged[end + 12 : end + 16] = struct.pack(
            "<I", struct.unpack("<I", forged[end + 12 : end + 16])[0] + grown
        )
        yield f"ZIP64 size {size}", bytes(forged)
    for count in (0, 1, 0xFFFF):
        forged = bytearray(honest)
        end = forged.rfind(b"PK\x05\x06")
        forged[end + 8 : end + 12] = struct.pack("<HH", count, count)
        yield f"{count} entries declared", bytes(forged)
    # All names lead to the same bytes, as in a non-recursive ZIP bomb.
    forged = bytearray(zipped(lambda file: file.writestr("archive/data/big", bytes(1 << 20))))
    place = forged.find(b"archive/data/big") - 30
    start = -1
    while (start := forged.find(b"PK\x01\x02", start + 1)) >= 0:
        forged[start + 42 : start + 46] = struct.pack("<I", place)
        forged[start + 20 : start + 28] = struct.pack("<II", 1 << 20, 1 << 20)
    yield "overlapping entries", bytes(forged)


def forged_files(path: Path) -> tuple[int, Callable[[int], str]]:
    """The number of forged pickles and archives, and the outcome of each under the name `path`."""
    honest, expected = path.read_bytes(), read_model(path)
    files = [*forged_pickles(), *forged_archives(honest)]

    def case(number: int) -> str:
        label, content = files[number]
        path.write_bytes(content)
        result = outcome(path, partial(read_model, path), expected)
        path.write_bytes(honest)
        return result if result in ("refused", "equal") else f"FAILED: {label}: {result}"

    return len(files), case


GIANTS = [
    10**9,
    2**40,
    2**62,
    2**64,
    10**300,
    -1,
    0,
    1,
    3,
    7,
    1.5,
    float("nan"),
    float("inf"),
    -0.0,
]
ODD = [None, True, "", "x", "\ud800", [], {}, [1], {"a": 1}, torch.zeros(3), torch.tensor(1)]


def value_changes(folder: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """Files, and for each a function that writes it with forged values and a valid digest."""
    for name, kind in (("checkpoint.pt", "checkpoint"), ("quantized.pt", "quantized model")):
        path = folder / name
        _, content = read_artifact(path, KINDS)
        for place in paths_in(content):
            old = content
            for key in place:
                old = old[key]
            values = [*GIANTS, *ODD, REMOVED]
            if isinstance(old, torch.Tensor):
                values += [torch.zeros(0), torch.full_like(old, 5).to(torch.int32), old[None]]
                values += [old.reshape(1, -1), old.reshape(-1, 1), old.double(), old.bfloat16()]
                values += [torch.ones(1 << 18, 1), torch.ones(1, 1 << 18)]
                if old.is_floating_point():
                    values += [torch.full_like(old, float(word)) for word in ("nan", "inf", "6e4")]
            for value in values:
                yield path, partial(write_changed, path, kind, content, place, value)
        if "packed" in content:
            for stream in forged_streams(content["packed"]):
                yield path, partial(write_changed, path, kind, content, ("packed",), stream)
        for change in ({"context": 2**23}, {"heads": 4, "kv_heads": 3}):
            changed = content | {"config": content["config"] | change}
            yield path, partial(write_artifact, path, kind, KINDS[kind], changed)
        for version in (0, 3, 10**300):
            yield path, partial(write_artifact, path, kind, version, content)
        for other in ("", "x" * 100_000, "two\nlines", "training state"):
            yield path, partial(write_artifact, path, other, 1, content)


def forged_values(folder: Path) -> tuple[int, Callable[[int], str]]:
    """The number of files with forged values, and the outcome of each."""
    changes = list(value_changes(folder))
    honest = {path: path.read_bytes() for path, _ in changes}
    expected = {path: read_model(path) for path in honest}

    def case(number: int) -> str:
        path, write = changes[number]
        write()
        try:
            return model_outcome(path, expected[path])
        finally:
            path.write_bytes(honest[path])

    return len(changes), case


def forged_streams(honest: torch.Tensor) -> Iterator[torch.Tensor]:
    """Streams of codes that are damaged, or say that they hold what cannot be in them."""
    draw = random.Random(0)
    for _ in range(60):
        yield torch.frombuffer(
            bytearray(mutate_bytes(honest.numpy().tobytes(), draw)), dtype=torch.uint8
        )
    for size in (1, 2, 40, len(honest) // 2, len(honest) - 2, len(honest) - 1):
        yield honest[:size].clone()
    yield torch.cat([honest, honest])
    yield torch.cat([honest, torch.zeros(1 << 20, dtype=torch.uint8)])


REMOVED = object()


def paths_in(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The keys that lead to every value in nested dicts."""
    for key in value:
        yield (*path, key)
        if isinstance(value[key], dict):
            yield from paths_in(value[key], (*path, key))


def write_changed(path: Path, kind: str, content: dict, place: tuple, value: Any) -> None:
    """Write `content` with another value at `place`, and a digest that is right."""
    content = deepcopy(content)
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    if value is REMOVED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    write_artifact(path, kind, KINDS[kind], content)


# Mutation -----------------------------------------------------------------------------------------

INTERESTING = [b"\0", b"\xff", b"\x7f", b"\x80", b"\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\xff"]
INTERESTING += [b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"]


def mutate_bytes(data: bytes, draw: random.Random, places: list[int] | None = None) -> bytes:
    """A few bytes changed, removed, repeated or put in, at any place or one of `places`."""
    content = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 4, 8])):
        place = draw.choice(places) if places else draw.randrange(len(content) + 1)
        size = draw.choice([1, 1, 2, 4, 30])
        match draw.randrange(5):
            case 0:
                content[place : place + size] = draw.randbytes(size)
            case 1:
                chosen = draw.choice(INTERESTING)
                content[place : place + len(chosen)] = chosen
            case 2:
                del content[place : place + size]
            case 3:
                content[place:place] = content[place : place + size]
            case 4:
                content[place : place + 1] = (
                    bytes([content[place] ^ 1]) if place < len(content) else b""
                )
    return bytes(content)


def mutate_pickle(program: bytes, draw: random.Random) -> bytes:
    """Instructions removed, repeated, exchanged, put in or with other arguments."""
    starts = [place for _, _, place in pickletools.genops(program)] + [len(program)]
    steps = [program[a:b] for a, b in pairwise(starts)]
    codes = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
    for _ in range(draw.choice([1, 1, 1, 2, 3, 6])):
        place = draw.randrange(1, len(steps))
        match draw.randrange(6):
            case 0:
                del steps[place]
            case 1:
                steps.insert(place, steps[place])
            case 2:
                other = draw.randrange(1, len(steps))
                steps[place], steps[other] = steps[other], steps[place]
            case 3:
                steps.insert(place, draw.choice(steps))
            case 4:
                steps.insert(place, draw.choice(codes) + draw.randbytes(draw.choice([0, 1, 4])))
            case 5:
                steps[place] = steps[place][:1] + mutate_bytes(steps[place][1:], draw)
    return b"".join(steps)


def mutated(folder: Path, count: int, seed: int) -> tuple[int, Callable[[int], str]]:
    """Mutated checkpoints and quantized models, and the outcome of each."""
    files = {}
    for name in ("checkpoint.pt", "quantized.pt"):
        path = folder / name
        honest = path.read_bytes()
        with zipfile.ZipFile(path) as file:
            entries = {entry.filename: file.read(entry) for entry in file.infolist()}
        headers = [place for place in range(len(honest) - 4) if honest[place : place + 2] == b"PK"]
        headers = [place + offset for place in headers for offset in range(46)]
        kind, content = read_artifact(path, KINDS)
        files[name] = honest, entries, headers, read_model(path), kind, content

    def case(number: int) -> str:
        draw = random.Random(f"{seed} {number}")
        name = draw.choice(list(files))
        path = folder / name
        honest, entries, headers, expected, kind, content = files[name]
        match draw.choices(["bytes", "pickle", "headers", "values"], [35, 40, 20, 5])[0]:
            case "bytes":
                path.write_bytes(mutate_bytes(honest, draw))
            case "headers":
                path.write_bytes(mutate_bytes(honest, draw, headers))
            case "pickle":
                write_mutated_pickle(path, entries, draw)
            case "values":
                place = draw.choice(list(paths_in(content)))
                try:
                    value = draw.choice([*GIANTS, *ODD, REMOVED])
                    write_changed(path, kind, content, place, value)
                except (UserError, OverflowError):
                    path.write_bytes(b"")
        result = model_outcome(path, expected)
        path.write_bytes(honest)
        return result

    return count, case


def write_mutated_pickle(path: Path, entries: dict[str, bytes], draw: random.Random) -> None:
    """Write the archive with a mutated pickle and, where it still can be read, its right digest."""
    (name,) = (name for name in entries if name.endswith("/data.pkl"))
    program = mutate_pickle(entries[name], draw)
    for _ in range(2):
        with zipfile.ZipFile(path, "w") as file:
            for entry, data in (entries | {name: program}).items():
                file.writestr(entry, data)
        try:
            document = read_tensors_file(path)
            digest = content_digest(document["content"])
            program = program.replace(document["digest"].encode(), digest.encode())
        except Exception:  # it will be refused
            return


def main() -> None:
    """Print for each line the number of cases tried and held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutated", type=int, default=100_000, help="mutated files")
    parser.add_argument("--every", type=int, default=1, help="of so many damages, try one")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        readers = make_files(folder)
        for file, read in readers.items():
            size = (folder / file).stat().st_size
            done = run_isolated(*damaged(folder / file, read, asked.every))
            print(f"{Path(file).name} of {size:,} bytes: {held(done)}", flush=True)
        for kind, cases in {
            "forged pickles and archives": forged_files(folder / "checkpoint.pt"),
            "forged values": forged_values(folder),
            "mutated": mutated(folder, asked.mutated, asked.seed),
        }.items():
            print(f"{kind}: {held(run_isolated(*cases))}", flush=True)


if __name__ == "__main__":
    main()
