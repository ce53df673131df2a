"""Bits per byte of general-purpose compressors on the held-out text, to compare a model with.

A compressor first sees the training text, as the model did: the cost of the held-out text is the
compressed size of both together minus that of the training text.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable

import pyppmd

WINDOW_BYTES = 64 << 20
"""Compressors are given at most this much of the training text, from its end."""


def _ppmd(data: bytes) -> bytes:
    encoder = pyppmd.Ppmd7Encoder(6, 256 << 20)
    return bytes(encoder.encode(data) + encoder.flush())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bzip2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "ppmd": _ppmd,
}
"""PPMd (Shkarin 2002; order 6, 256 MiB of memory) is the strongest of these on text."""


def baselines(training: bytes, held_out: bytes) -> dict[str, float]:
    """For each compressor, the bits per byte that `held_out` adds after `training`."""
    training = training[-WINDOW_BYTES:]
    figures = {}
    for name, compress in COMPRESSORS.items():
        extra = len(compress(training + held_out)) - len(compress(training))
        figures[name] = round(8 * extra / len(held_out), 4)
    return figures
