"""Megabytes per second of learning a vocabulary and of encoding, on hard texts and on yours.

    python tests/benchmarks/tokenizing.py hard --sizes 1 2 4
    python tests/benchmarks/tokenizing.py text FILE --workers 1 2

`hard` does both for texts that break tokenizers, in three sizes each: the time must grow as the
size does. Seconds are the processor's, so that other programs disturb little. `text` encodes a file
as the stage does, from disk to an array on disk, with so many threads, beside tiktoken's
`encode_ordinary_batch` of the same chunks in memory with as many.
"""

import argparse
import base64
import random
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from stages.lm.corpus.corpus import Corpus, Piece
from stages.lm.data.dataset import token_dtype, token_file
from stages.lm.data.splits import read_chunks
from stages.lm.text.parallel import encode_chunks
from stages.lm.text.tokenizer import train_bpe
from stages.tokenize_text import BPE_SAMPLE_BYTES, training_sample

MB = 1_000_000
VOCABULARY = {"hard": 1024, "text": 4096}
"""What `auto` takes for texts of these sizes."""


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(required=True, dest="command")
    hard = commands.add_parser("hard")
    hard.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 4], help="in MB")
    hard.add_argument("--pattern", default="gpt-2")
    text = commands.add_parser("text")
    text.add_argument("file", type=Path)
    text.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    asked = parser.parse_args()
    if asked.command == "hard":
        table_of_hard_texts(asked.sizes, asked.pattern)
    else:
        table_of_one_text(asked.file, asked.workers)


def hard_texts() -> dict[str, Callable[[int], bytes]]:
    """For each kind of text, what makes one of about so many bytes."""
    marks = [chr(code) for code in range(0x300, 0x370)]
    every = "".join(map(chr, [*range(0x20, 0xD800), *range(0xE000, 0x1A000)])).encode()
    chinese = [chr(code) for code in range(0x4E00, 0x6D00)]

    def repeated(part: bytes) -> Callable[[int], bytes]:
        return lambda size: (part * (size // len(part) + 1))[:size]

    def drawn(symbols: bytes) -> Callable[[int], bytes]:
        return lambda size: bytes(random.Random(0).choices(symbols, k=size))

    def zalgo(size: int) -> bytes:
        draw = random.Random(0)
        return "".join(
            draw.choice("abcdefgh") + "".join(draw.choices(marks, k=20)) for _ in range(size // 41)
        ).encode()

    return {
        "ACGT": drawn(b"ACGT"),
        "base64": lambda size: base64.b64encode(random.Random(0).randbytes(size * 3 // 4)),
        "digits": drawn(b"0123456789"),
        "punctuation": drawn(b"!#$%&()*+,-./:;<=>?@"),
        "one byte": repeated(b"a"),
        "one word": repeated(b"word"),
        "words, no new line": repeated(b"the lazy dog jumps. "),
        "spaces": repeated(b" "),
        "new lines": repeated(b"\n"),
        "CRLF": repeated(b"\r\n"),
        "combining marks": zalgo,
        "Chinese, no new line": lambda size: "".join(
            random.Random(0).choices(chinese, k=size // 3)
        ).encode(),
        "100,000 characters": repeated(every),
        "noise": lambda size: random.Random(0).randbytes(size),
        "every second byte invalid": repeated(b"a\xff"),
    }


def table_of_hard_texts(sizes: list[float], pattern: str) -> None:
    """A row for each kind of text: seconds and speed of learning and of encoding by size."""
    print(
        f"pattern {pattern}, vocabulary {VOCABULARY['hard']}: learning / encoding, seconds (MB/s)"
    )
    for name, make in hard_texts().items():
        cells = []
        for size in sizes:
            data = make(int(size * MB))
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "text")
                path.write_bytes(data)
                part = whole(path)
                begin = time.process_time()
                tokenizer = train_bpe(training_sample(part), VOCABULARY["hard"], pattern)
                learned = time.process_time()
                ids = [tokenizer.encode(chunk) for chunk in chunks_of(part)]
                encoded = time.process_time()
            assert b"".join(map(tokenizer.decode, ids)) == data, name
            seconds = (learned - begin, encoded - learned)
            cells.append(" / ".join(f"{each:.2f} ({size / each:.1f})" for each in seconds))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def table_of_one_text(file: Path, workers: list[int]) -> None:
    """Learning once, then a row for each number of threads."""
    part = whole(file)
    size = part.bytes
    begin = time.perf_counter(), time.process_time()
    tokenizer = train_bpe(training_sample(part), VOCABULARY["text"], "gpt-2")
    wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
    learned = min(size, BPE_SAMPLE_BYTES) / MB
    print(f"learned from {learned:.0f} MB: {wall:.1f} s, {cpu:.1f} s of processors", flush=True)
    dtype = token_dtype(tokenizer.vocab_size)
    for count in workers:
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter(), time.process_time()
            encoded = (ids for ids, _ in encode_chunks(tokenizer, chunks_of(part), count))
            with token_file(Path(folder, "ids.npy"), dtype) as ids_file:
                for ids in encoded:
                    ids_file.append(ids)
            tokens = ids_file.count
            wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        told = f"{size / tokens:.3f} bytes a token, at most {memory:.0f} MB of memory"
        print(f"{count} threads: {speed(size, wall, cpu)}; {told}", flush=True)
        texts = [chunk.decode("utf-8", "replace") for chunk in chunks_of(part)]
        begin = time.perf_counter(), time.process_time()
        for first in range(0, len(texts), 16):  # all at once would need 40 bytes a token
            tokenizer._encoding.encode_ordinary_batch(texts[first : first + 16], num_threads=count)
        wall, cpu = time.perf_counter() - begin[0], time.process_time() - begin[1]
        print(f"{count} threads, tiktoken alone: {speed(size, wall, cpu)}", flush=True)


def whole(file: Path) -> Corpus:
    """A file as a corpus that is all for training."""
    size = file.stat().st_size

    def read() -> Iterator[Piece]:
        return (Piece("train", chunk) for chunk in read_chunks(file, range(size)))

    return Corpus("text", size, "", {"train": size}, read)


def chunks_of(part: Corpus) -> Iterator[bytes]:
    """All bytes of a corpus."""
    return (piece.data for piece in part.read())


def speed(size: int, wall: float, cpu: float) -> str:
    """MB/s of the clock and of a core."""
    return f"{size / MB / wall:.2f} MB/s, {size / MB / cpu:.2f} a core"


if __name__ == "__main__":
    main()
