"""What general compressors need for the held-out text, as a yardstick in bits per byte."""

import bz2
import gzip
import lzma
from collections.abc import Callable

import pyppmd

WINDOW_BYTES = 64 << 20
"""Only this much of the end of the training text is shown to a compressor."""


def _ppmd(data: bytes) -> bytes:
    encoder = pyppmd.Ppmd7Encoder(6, 256 << 20)
    return bytes(encoder.encode(data) + encoder.flush())


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, 9),
    "bzip2": lambda data: bz2.compress(data, 9),
    "xz": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "ppmd": _ppmd,
}
"""PPMd is order 6 with 256 MiB of memory (Shkarin 2002), the strongest of these on text."""


def baselines(training: bytes, held_out: bytes) -> dict[str, float]:
    """For each compressor, the extra bits a byte of `held_out` costs after `training`."""
    training = training[-WINDOW_BYTES:]
    figures = {}
    for name, compress in COMPRESSORS.items():
        extra = len(compress(training + held_out)) - len(compress(training))
        figures[name] = round(8 * extra / len(held_out), 4)
    return figures
