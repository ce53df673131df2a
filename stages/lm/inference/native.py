"""The C engine as a shared library, compiled on this machine on first use and then cached."""

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ctypes import c_int32, c_int64, c_void_p
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import sha256_file
from ..quantization.rans import decode_with_numpy, encode_with_numpy

SOURCE = Path(__file__).with_name("engine.c")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-w", "-fPIC", "-shared")
"""No contraction to fused operations, so that all compilers round sums in the same way."""
NATIVE = ("-march=native", "-mcpu=native", "-O3")
"""Flags to try in turn: the first that the compiler knows uses all of this processor."""
TIMEOUT = 120.0
"""Seconds for one run of the compiler, which takes about three of an idle processor."""
LOADS = "import ctypes, sys; ctypes.CDLL(sys.argv[1]).feed"
"""Python that ends in an error, or is killed, if its argument is no library of the engine."""


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
        engine.fits_4_bits.argtypes = (c_void_p, c_int64)
        engine.pack.argtypes = (c_void_p, c_void_p, *[c_int32] * 4)
        engine.feed.argtypes = (*[c_void_p] * 3, *[c_int32] * 3, c_void_p, c_void_p, c_int32)
        engine.encode.argtypes = (*[c_void_p] * 3, c_int32, c_void_p, c_int32, c_void_p)
        engine.decode.argtypes = (
            *(c_void_p, c_void_p, c_void_p, c_int32, c_void_p, c_int32, c_void_p, c_int64),
        )
    except (OSError, AttributeError) as error:  # AttributeError: it is another library
        print(f"decoding without the C engine, slower: {error}", file=sys.stderr)
        return None
    engine.decode.restype = engine.encode.restype = c_int64
    engine.pack.restype = engine.feed.restype = None
    return engine


def decode(
    arrays: np.ndarray,
    sizes: np.ndarray,
    tables: np.ndarray,
    states: np.ndarray,
    words: np.ndarray,
) -> int:
    """A `rans.Decode`: the engine's, or numpy's where there is no engine."""
    compiled = library()
    if compiled is None:
        return decode_with_numpy(arrays, sizes, tables, states, words)
    filled, wanted, counts, running, coded = (
        array.ctypes.data for array in (arrays, sizes, tables, states, words)
    )
    lanes, end = len(states), len(words)
    return int(compiled.decode(filled, wanted, counts, len(sizes), running, lanes, coded, end))


def encode(
    arrays: np.ndarray, sizes: np.ndarray, tables: np.ndarray, states: np.ndarray
) -> np.ndarray:
    """A `rans.Encode`: the engine's, or numpy's where there is no engine."""
    compiled = library()
    if compiled is None:
        return encode_with_numpy(arrays, sizes, tables, states)
    words = np.empty(1 + len(arrays), np.uint16)
    symbols, wanted, counts, running = (
        each.ctypes.data for each in (arrays, sizes, tables, states)
    )
    end = words.ctypes.data + words.nbytes
    count = compiled.encode(symbols, wanted, counts, len(sizes), running, len(states), end)
    return words[len(words) - count :]


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
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
        folder = root / "small-language-model"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Without links, so that what is checked here is what is used.
        folder = folder.parent.resolve() / folder.name
        usable = is_own(folder, stat.S_IFDIR) and os.access(folder, os.W_OK)
        usable = usable and not any(map(replaceable, folder.parents))
    except (OSError, RuntimeError):  # RuntimeError: nobody knows this user's home
        usable = False
    if usable:
        yield folder
    else:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)


def is_own(path: Path, kind: int) -> bool:
    """Whether `path` is of this kind (`stat.S_IFREG`, ...), no link, and only this user can write
    it: a library runs in this process.
    """
    found = path.lstat()
    own = found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return own and stat.S_IFMT(found.st_mode) == kind


def replaceable(folder: Path) -> bool:
    """Whether another user (but root) could put something else in the place of what is in it."""
    found = folder.stat()
    shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
    return bool(shared) or found.st_uid not in (0, os.getuid())


def built(compiler: list[str], native: tuple[str, ...], folder: Path) -> Path:
    """The library in `folder`, compiled unless it is there, whole, from the same sources, compiler,
    flags and processor. Its name ends with its SHA-256.

    Raises:
        OSError: the folder cannot be written, the compiler fails with every one of `native` or does
            not end, or its library cannot be loaded.
    """
    sources = [SOURCE, *sorted(SOURCE.parent.glob("*.h"))]
    contents = [(source.name, source.read_bytes()) for source in sources]
    found = Path(compiler[0]).resolve().stat()
    known = (found.st_size, found.st_mtime_ns, compiler, FLAGS, native, processor())
    made_from = hashlib.sha256(repr((contents, known)).encode()).hexdigest()[:32]
    for path in folder.glob(f"engine-{made_from}-*.so"):
        with suppress(OSError, UserError):  # one that cannot be read is compiled anew
            if is_own(path, stat.S_IFREG) and path.stem.endswith(sha256_file(path)):
                return path
    with tempfile.TemporaryDirectory(dir=folder) as work:
        new = Path(work) / "engine.so"
        for flag in native:
            command = [*compiler, *FLAGS, flag, "-o", str(new), str(SOURCE), "-lm", "-pthread"]
            error = failure(command, Path(work))
            if not error:
                break
        else:
            raise OSError(f"{compiler[0]} fails ({error})")
        # Another process loads it first, as a library that is not whole can end the process.
        if error := failure([sys.executable, "-c", LOADS, str(new)], Path(work)):
            raise OSError(f"what {compiler[0]} compiled cannot be loaded ({error})")
        new.chmod(0o700)
        with new.open("rb") as file:
            os.fsync(file.fileno())
        path = folder / f"engine-{made_from}-{sha256_file(new)}.so"
        new.replace(path)
    return path


def failure(command: list[str], work: Path) -> str:
    """Run a command without input; "" if it ends well, else what it said last or how it ended.

    Whatever it started ends with it.

    Raises:
        OSError: it cannot be started, or does not end within `TIMEOUT`.
    """
    told = work / "told"
    # Into a file: a pipe would stay open in whatever the command leaves behind.
    with told.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            raise OSError(f"{command[0]} did not end within {TIMEOUT:g} seconds") from None
        finally:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode == 0:
        return ""
    lines = told.read_bytes()[-1000:].decode("utf-8", "replace").split("\n")
    said = [line for line in lines if line.strip()]
    return said[-1][:200] if said else f"exit code {process.returncode}"


def processor() -> str:
    """The processor's model and instructions: a home folder may be shared by several machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    told = ("model name", "flags", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))
