"""Python processes without the seconds of their imports: forks of one that has made them.

A server process imports torch and DVC, never the project's own code, when it is first asked, and
forks a child for every request. The child does what `python` would do with the same arguments,
folder, environment and open files: `-m MODULE`, `-c CODE` or a script, so it imports the project
of its own folder. Where a fork of a process that uses torch cannot be relied on (macOS, Windows),
everything here starts a new interpreter instead.
"""

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NoReturn

ADDRESS = "WARM_PYTHON"
"""The environment variable that holds the path of the server's socket."""
SLOW = ("torch", "torch._dynamo", "networkx", "dvc.cli", "dvc.commands.repro", "dvc.repo")
"""What the stages and DVC import of others; the first step of an optimizer imports `_dynamo`."""
SHIM = """\
#!{python} -IS
import json, os, socket, sys
words = {words} + sys.argv[1:]
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    answer = server.makefile().read().split()
code = int(answer[-1])
sys.exit(code if code >= 0 else 128 - code)
"""
"""The commands `python` and `dvc` of the children's PATH."""


# The server ---------------------------------------------------------------------------------------


def serve(address: str) -> None:
    """Fork a child for every request, until standard input is closed."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    print("listening", flush=True)
    if select.select([0, listener], [], [])[0][0] == 0:
        return
    for name in SLOW:
        importlib.import_module(name)
    sys.dont_write_bytecode = False  # so that a copy of the project is compiled once
    gc.freeze()
    poll, running = select.poll(), {}
    for number in (0, listener.fileno()):
        poll.register(number, select.POLLIN)
    while True:
        for number, _ in poll.poll():
            if number == 0:
                return
            if number == listener.fileno():
                connection = listener.accept()[0]
                request, files = receive(connection)
                pid = os.fork()
                if pid == 0:
                    listener.close()
                    connection.close()
                    become(*request, files)
                for file in files:
                    os.close(file)
                connection.sendall(f"{pid}\n".encode())
                end = os.pidfd_open(pid)
                running[end] = pid, connection
                poll.register(end, select.POLLIN)
            else:
                poll.unregister(number)
                pid, connection = running.pop(number)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                with suppress(OSError), connection:  # a client may have been killed
                    connection.sendall(f"{code}\n".encode())
                os.close(number)


def receive(connection: socket.socket) -> tuple[list[Any], list[int]]:
    """A request: arguments, folder and environment, and the three standard files."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        return json.loads(stream.read(int.from_bytes(size, "big"))), files


def become(
    words: list[str], folder: str, environment: dict[str, str], files: list[int]
) -> NoReturn:
    """Do in this process what a new interpreter would do, and leave it."""
    code: Any = 1
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        encoding = environment.get("PYTHONIOENCODING")
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), encoding)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), encoding)
        errors = io.BufferedWriter(io.FileIO(2, "w"))
        sys.stderr = io.TextIOWrapper(errors, encoding, "backslashreplace", line_buffering=True)
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        sys.path[0] = folder
        execute(words)
        code = 0
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code or 0)


def execute(words: list[str]) -> None:
    """Run `-m MODULE ARGUMENTS`, `-c CODE ARGUMENTS` or `SCRIPT ARGUMENTS`."""
    if words[0] == "-m":
        sys.argv = ["-m", *words[2:]]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = words
        sys.path[0] = str(Path(words[0]).parent)
        runpy.run_path(words[0], run_name="__main__")


# The tests ----------------------------------------------------------------------------------------


@contextmanager
def server() -> Iterator[None]:
    """Have a server for the block, whose address this process and its children know."""
    if sys.platform != "linux":
        yield
        return
    with tempfile.TemporaryDirectory(prefix="warm-") as name:
        address = f"{name}/socket"
        for command, words in {"python": [], "dvc": ["-m", "dvc"]}.items():
            path = Path(name, "bin", command)
            path.parent.mkdir(exist_ok=True)
            path.write_text(SHIM.format(python=sys.executable, words=words, address=address))
            path.chmod(0o755)
        # One thread: a fork has no other threads than the one that forked.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, __file__, address],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin and process.stdout
        assert process.stdout.readline() == b"listening\n"
        os.environ[ADDRESS] = address
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            process.stdin.close()
            process.wait()


class Child:
    """A child of the server, with what these tests use of `subprocess.Popen`."""

    def __init__(self, words: list[str], folder: Path, files: list[int], environment: dict) -> None:
        self.returncode: int | None = None
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(os.environ[ADDRESS])
        request = json.dumps([words, str(folder), environment]).encode()
        socket.send_fds(self.connection, [len(request).to_bytes(8, "big")], files)
        self.connection.sendall(request)
        self.answer = self.connection.makefile()
        self.pid = int(self.answer.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the number of a signal, or None of a child that still runs."""
        ended = self.returncode is None and select.select([self.connection], [], [], 0)[0]
        return self.wait() if ended else self.returncode

    def wait(self) -> int:
        """The same, once it has ended."""
        if self.returncode is None:
            with self.connection, self.answer:
                self.returncode = int(self.answer.readline())
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(signal.SIGKILL)


Process = Child | subprocess.Popen[bytes]


def environment(**changed: str) -> dict[str, str]:
    """This process's, with `python` and `dvc` of this interpreter: forks, if there is a server."""
    folders = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if ADDRESS in os.environ:
        folders.insert(0, str(Path(os.environ[ADDRESS]).with_name("bin")))
    return os.environ | {"PATH": os.pathsep.join(folders)} | changed


def start(
    folder: Path, *words: str, output: IO[bytes], errors: IO[bytes] | None = None, **changed: str
) -> Process:
    """Begin `python WORDS` in a folder, with changes to its environment."""
    if ADDRESS not in os.environ:
        return subprocess.Popen(
            [sys.executable, *words], cwd=folder, env=environment(**changed),
            stdin=subprocess.DEVNULL, stdout=output, stderr=errors or output,
        )  # fmt: skip
    with Path(os.devnull).open("rb") as nothing:
        files = [nothing.fileno(), output.fileno(), (errors or output).fileno()]
        return Child(list(words), folder, files, environment(**changed))


def python(folder: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    """What came of `python WORDS` in a folder."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        code = start(folder, *words, output=output, errors=errors, **changed).wait()
        told = []
        for file in (output, errors):
            file.seek(0)
            told.append(file.read().decode("utf-8"))
    return subprocess.CompletedProcess(words, code, *told)


if __name__ == "__main__":
    serve(sys.argv[1])
