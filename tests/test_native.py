"""A library is loaded only if it is whole and this user's own; a compiler may fail in any way."""

import hashlib
import os
import shutil
import stat
import time
from pathlib import Path

import pytest

from stages.lm.inference import native
from stages.lm.inference.native import NATIVE, built, cache_folder, compiler, library

SOURCE = """
#include "part.h"
void feed(void) {}
void pack(void) {}
int encode(void) { return 0; }
void fits_4_bits(void) {}
void decode(void) {}
int lanes(void) { return 7; }
"""


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache for a source that is compiled in no time; the folder of that source."""
    (tmp_path / "part.h").write_text("int a;\n")
    (tmp_path / "engine.c").write_text(SOURCE)
    monkeypatch.setattr(native, "SOURCE", tmp_path / "engine.c")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.cache_clear()
    yield tmp_path
    library.cache_clear()


@pytest.fixture
def compile_with(monkeypatch, tmp_path):
    """A function that has a shell script take the place of the compiler, which it calls $CC."""
    monkeypatch.setenv("CC", shutil.which("cc"))
    script = tmp_path / "cc"

    def install(lines):
        script.write_text(f"#!/bin/sh\n{lines}\n")
        script.chmod(0o700)
        monkeypatch.setattr(native.shutil, "which", lambda name: str(script))

    return install


@pytest.fixture
def compiled_again(compile_with, tmp_path):
    """A function that says whether the compiler was run since it was last asked."""
    compile_with(f'echo >> {tmp_path}/log; exec $CC "$@"')

    def asked():
        log = tmp_path / "log"
        found = log.exists()
        log.unlink(missing_ok=True)
        return found

    return asked


# What is kept -------------------------------------------------------------------------------------


def test_the_library_is_compiled_once(compiled_again, cache):
    assert library().lanes() == 7
    (kept,) = (cache / "cache" / "small-language-model").iterdir()
    assert kept.stem.endswith(hashlib.sha256(kept.read_bytes()).hexdigest())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert compiled_again()
    library.cache_clear()
    assert library().lanes() == 7 and not compiled_again()


def test_a_changed_header_is_compiled_anew(cache):
    first = built(compiler(), NATIVE, cache)
    assert built(compiler(), NATIVE, cache) == first
    (cache / "part.h").write_text("int b;\n")
    assert built(compiler(), NATIVE, cache) != first


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by(make):
    def replace(path):
        path.unlink()
        make(path)

    return replace


@pytest.mark.parametrize(
    "damage",
    {
        "cut": lambda path: os.truncate(path, 5000),
        "cut by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
        "emptied": lambda path: os.truncate(path, 0),
        "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
        "a bit": flip_a_bit,
        "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
        "another file": lambda path: shutil.copy("/bin/true", path),
        "a link to it": lambda path: path.symlink_to(path.rename(path.parent / "moved")),
        "a dangling link": replace_by(lambda path: path.symlink_to("nowhere")),
        "a pipe": replace_by(os.mkfifo),
        "group can write": lambda path: path.chmod(0o720),
        "others can write": lambda path: path.chmod(0o702),
        "of another name": lambda path: path.rename(path.with_name(path.name[:-67] + "0.so")),
        "removed": os.unlink,
    }.items(),
    ids=lambda item: item[0],
)
def test_a_library_that_is_not_whole_or_not_safe_is_compiled_anew(cache, compiled_again, damage):
    path = built(compiler(), NATIVE, cache)
    whole = path.read_bytes()
    assert compiled_again()
    damage[1](path)
    assert built(compiler(), NATIVE, cache) == path
    assert compiled_again()
    assert path.read_bytes() == whole and not path.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_library_of_another_user_is_not_used(cache, monkeypatch):
    path = built(compiler(), NATIVE, cache)
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    assert not native.is_own(path, stat.S_IFREG)


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(5000)])
def test_a_whole_library_that_cannot_be_loaded_is_told_in_a_line(cache, capsys, content):
    with cache_folder() as folder:
        path = built(compiler(), NATIVE, folder)
    digest = hashlib.sha256(content).hexdigest()
    path.write_bytes(content)
    path.rename(path.with_name(f"{path.stem[:-64]}{digest}.so"))
    assert library() is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "without the C engine" in told and digest in told


# Compilers ----------------------------------------------------------------------------------------

# The compiler's arguments end with: -o FILE SOURCE -lm -pthread
TO_FILE = 'eval "file=\\${$(($# - 3))}"; '


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo first >&2; echo no such instruction >&2; exit 3", "no such instruction"),
        ("exit 3", "exit code 3"),
        ("kill -9 $$", "exit code -9"),
        ("exit 0", "cannot be loaded"),
        ("printf '\\377\\n\\n' >&2; exit 1", "\ufffd"),
        (TO_FILE + 'echo garbage > "$file"', "cannot be loaded"),
        (TO_FILE + ': > "$file"', "cannot be loaded"),
        (TO_FILE + 'mkdir "$file"', "cannot be loaded"),
        (TO_FILE + '$CC "$@" && truncate -s 9000 "$file"', "cannot be loaded"),
        (TO_FILE + '$CC "$@" && truncate -s 3000 "$file"', "cannot be loaded"),
        (TO_FILE + 'echo "int x;" | $CC -shared -x c - -o "$file"', "undefined symbol: feed"),
        ("read line || exit 4", "exit code 4"),
        ("yes | head -c 100000 | tr -d '\\n' >&2; exit 1", "yyy"),
        ('rm "$0"; exit 1', "No such file"),
        ("sleep 100 & sleep 100", "did not end within"),
        ("trap '' TERM INT HUP; sleep 100 & wait", "did not end within"),
    ],
)
def test_a_compiler_that_fails_is_told_in_a_line(
    cache, compile_with, monkeypatch, capfd, script, words
):
    if "sleep" in script:
        monkeypatch.setattr(native, "TIMEOUT", 0.2)
    compile_with(script)
    began = time.monotonic()
    assert library() is None
    assert time.monotonic() - began < 10
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and "without the C engine" in told and words in told
    assert len(told) < 500
    assert not list((cache / "cache" / "small-language-model").iterdir())


@pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc here")
def test_what_a_compiler_has_started_ends_with_it(cache, compile_with, monkeypatch):
    monkeypatch.setattr(native, "TIMEOUT", 0.2)
    compile_with(f"sleep 100 & echo $! > {cache}/left; wait")
    assert library() is None
    status = Path("/proc", (cache / "left").read_text().strip(), "stat")
    for _ in range(500):  # a signal needs a moment
        if not status.exists() or ") Z " in status.read_text():
            return
        time.sleep(0.01)
    raise AssertionError(f"it still runs: {status}")


def test_without_a_compiler_a_line_says_so_once(monkeypatch, capsys):
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    monkeypatch.setattr(native.importlib.util, "find_spec", lambda name: None)
    assert library() is None and library() is None
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "without the C engine" in told and "no C compiler" in told


def test_a_compiler_that_is_gone_when_it_is_run_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(native.shutil, "which", lambda name: "/nowhere/cc")
    assert library() is None
    assert "/nowhere/cc" in capsys.readouterr().err


def test_a_compiler_may_be_a_python_package(monkeypatch, tmp_path):
    package = tmp_path / "ziglang"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "zig").write_text(f'#!/bin/sh\nshift\nexec {shutil.which("cc")} "$@"\n')
    (package / "zig").chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(native.shutil, "which", lambda name: None)
    assert compiler() == [str(package / "zig"), "cc"]
    assert library() is not None


# The folder ---------------------------------------------------------------------------------------


def test_libraries_are_kept_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    with cache_folder() as folder:
        assert folder == tmp_path / "new" / "small-language-model"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("place", "mode", "used"),
    [
        ("a/b/small-language-model", 0o700, True),
        ("a/b/small-language-model", 0o755, True),
        ("a/b/small-language-model", 0o777, False),
        ("a/b/small-language-model", 0o1777, False),
        ("a/b/small-language-model", 0o720, False),
        ("a/b/small-language-model", 0o702, False),
        ("a/b", 0o755, True),
        ("a/b", 0o1777, True),
        ("a/b", 0o777, False),
        ("a/b", 0o775, False),
        ("a", 0o1777, True),
        ("a", 0o777, False),
    ],
)
def test_a_folder_that_others_can_change_is_not_used(monkeypatch, tmp_path, place, mode, used):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a" / "b"))
    with cache_folder() as own:
        pass
    (tmp_path / place).chmod(mode)
    with cache_folder() as folder:
        assert (folder == own) == used
        assert used or stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.exists() == used


def test_a_folder_of_another_user_is_not_used(monkeypatch):
    with cache_folder() as own:
        pass
    monkeypatch.setattr(os, "getuid", lambda: own.stat().st_uid + 1)
    with cache_folder() as folder:
        assert folder != own


def test_a_link_to_the_cache_is_followed_and_one_in_place_of_the_folder_is_not(cache):
    (cache / "other").mkdir(mode=0o700)
    (cache / "cache").symlink_to(cache / "other")
    with cache_folder() as folder:
        assert folder == cache / "other" / "small-language-model"
    folder.rmdir()
    folder.symlink_to(cache)
    with cache_folder() as other:
        assert other not in (folder, cache)


def no_home(path):
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("cause", ["a file", "no home", "a name that is too long"])
def test_where_nothing_can_be_kept_it_is_compiled_for_this_process(cache, monkeypatch, cause):
    place = cache / ("x" * 300 if cause == "a name that is too long" else "file/cache")
    (cache / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", "" if cause == "no home" else str(place))
    monkeypatch.setattr(Path, "expanduser", no_home)
    assert library().lanes() == 7
