"""The C engine as a shared library, compiled on this machine on first use and then cached."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np

from ..quantization.rans import decode_with_numpy

SOURCE = Path(__file__).with_name("engine.c")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-w", "-fPIC", "-shared")
"""No contraction to fused operations, so that all compilers round sums in the same way."""
NATIVE = ("-march=native", "-mcpu=native", "-O3")
"""Flags to try in turn: the first that the compiler knows uses all of this processor."""


@functools.lru_cache
def library(native: tuple[str, ...] = NATIVE) -> ctypes.CDLL | None:
    """The compiled engine, or None with a line on stderr that says why.

    The flags in `native` are tried in turn until one compiles.
    """
    try:
        if not hasattr(os, "getuid"):
            raise OSError("it is written for Unix")
        with cache_folder() as folder:
            engine = ctypes.CDLL(str(built(compiler(), native, folder)))
    except OSError as error:
        print(f"decoding without the C engine, slower: {error}", file=sys.stderr)
        return None
    engine.fits_4_bits.argtypes = (c_void_p, c_int64)
    engine.pack.argtypes = (c_void_p, c_void_p, *[c_int32] * 4)
    engine.feed.argtypes = (*[c_void_p] * 3, *[c_int32] * 3, c_void_p, c_int32)
    engine.decode.argtypes = (
        *(c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_int64),
    )
    engine.decode.restype = c_int64
    engine.pack.restype = engine.feed.restype = None
    return engine


def decode(
    arrays: np.ndarray,
    sizes: np.ndarray,
    tables: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """A `packing.Decode`: the engine's, or numpy's where there is no engine."""
    compiled = library()
    if compiled is None:
        return decode_with_numpy(arrays, sizes, tables, states, words)
    filled, wanted, counts, running, coded = (
        array.ctypes.data for array in (arrays, sizes, tables, states, words)
    )
    lanes, end = len(states), len(words)
    return int(compiled.decode(filled, wanted, counts, len(sizes), running, lanes, coded, end))


def compiler() -> list[str]:
    """The command that compiles C: the system's, else the one of the Python package ziglang.

    Raises:
        OSError: there is none.
    """
    for name in ("cc", "gcc", "clang"):
        if found := shutil.which(name):
            return [found]
    package = importlib.util.find_spec("ziglang")
    if package is None or package.origin is None:
        raise OSError("no C compiler is installed here; `pip install ziglang` brings one")
    return [str(Path(package.origin).with_name("zig")), "cc"]


@contextmanager
def cache_folder() -> Iterator[Path]:
    """A folder for libraries that only this user can write: in the user's cache, else a temporary
    one that is gone afterwards.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    folder = root / "small-language-model"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
        # A library runs in this process: nobody else may have put it there.
        own = found.st_uid == os.getuid() and not found.st_mode & 0o022 and not folder.is_symlink()
        usable = own and os.access(folder, os.W_OK)
    except OSError:
        usable = False
    if usable:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def built(compiler: list[str], native: tuple[str, ...], folder: Path) -> Path:
    """The library in `folder`, compiled unless it is there from the same sources, compiler, flags
    and processor.

    Raises:
        OSError: the folder cannot be written, or the compiler fails with every one of `native`.
    """
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    contents = [(source.name, source.read_bytes()) for source in sources]
    found = Path(compiler[0]).resolve().stat()
    known = (found.st_size, found.st_mtime_ns, compiler, FLAGS, native, processor())
    digest = hashlib.sha256(repr((contents, known)).encode()).hexdigest()
    path = folder / f"engine-{digest}.so"
    if path.exists():
        return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        new = Path(work) / "engine.so"
        for flag in native:
            command = [*compiler, *FLAGS, flag, "-o", str(new), str(SOURCE), "-lm", "-pthread"]
            result = subprocess.run(command, capture_output=True)
            if result.returncode == 0:
                break
        else:
            lines = result.stderr.decode("utf-8", "replace").splitlines()
            raise OSError(f"{compiler[0]} fails ({lines[-1] if lines else result.returncode})")
        new.replace(path)
    return path


def processor() -> str:
    """The processor's model and instructions: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
