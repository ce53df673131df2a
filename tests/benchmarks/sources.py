"""What people bring: damaged and forged files, killed stages, and folders of two gigabytes.

    python tests/benchmarks/sources.py forged --mutated 2000    # about half an hour on one core
    python tests/benchmarks/sources.py killed --moments 20
    python tests/benchmarks/sources.py large --bytes 200000000 2000000000

`forged`: the stage `corpus` on one file after the other, of every format in FORMATS.md, mutated or
made to do harm; each second one lies beside a sound text. Held is that it is read, left out in a
line, or refused in a sentence; within 90 seconds of processors and 1 GB beyond what the process
had, those of its readers included; and nothing is executed, connected to, or written but
`corpus.json`, and nothing outside the folder is read. PDF is among them where `pypdf` is there.

`killed`: SIGKILL of `corpus` and of `tokenize` at moments drawn over their whole time, on a folder
with every format; then both run again. Held is that `corpus.json` and `models/tokens/` have the
bytes of an undisturbed run, no temporary file is left, and after ten seconds no process.

`large`: seconds and memory (the largest sum over all processes) of both stages on 2,000 files, and
on one file with the same bytes; of the largest folder, of a minute of training, too. Linux only.
"""

import argparse
import importlib.util
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from pathlib import Path

from forged_sources import Files, bombs, mutated, sound, special
from fuzz import project
from isolation import cpu_seconds, held
from names import processor_seconds

from stages import corpus
from stages.lm.core.errors import UserError
from stages.lm.sources.isolation import stop

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 90
"""Of processors, for a file. A reader may take 60 for a part."""
MEMORY = 1_000_000_000
LEFT_SECONDS = 10
"""After which no reader is left of a killed stage; one that just starts imports its libraries."""
WATCH = """
import os, sys

ACTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir")
ACTS += ("socket.connect", "socket.bind", "socket.getaddrinfo", "os.symlink", "os.link")
READ = [{own!r}, {root!r}, sys.prefix, sys.base_prefix, *filter(None, sys.path)]
READ = [os.path.realpath(each) for each in READ] + ["/proc", "/sys", "/dev/null", "/usr"]

def outside(path):
    real = os.path.realpath(os.fsdecode(path))
    return not any(real == each or real.startswith(each + "/") for each in READ)

def watch(event, arguments, busy=[]):
    if busy:
        return
    busy.append(1)
    try:
        told = event in ACTS
        if event == "open" and not isinstance(arguments[0], int):
            path, mode, flags = arguments
            writes = bool(flags & 3) or bool(set(mode or "") & set("wax+"))
            told = outside(path) or (
                writes and "/metrics/" not in str(path) and str(path) != "/dev/null"
            )
        if event == "subprocess.Popen":
            told = "stages.lm.sources.worker" not in arguments[1]
        if event == "os.mkdir" or event == "os.rename":
            told = {own!r} not in str(arguments[0])
        if told:
            os.write(LOG, f"{{event}} {{arguments!r:.150}}\\n".encode())
    finally:
        busy.clear()

LOG = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sys.addaudithook(watch)
"""
"""Notes what a reader of files has no business doing; the readers' processes run it first, too."""


# Forged files -------------------------------------------------------------------------------------


def forged(work: Path, count: int, seed: int) -> None:
    """Print how often which outcome came, and every failure."""
    outside = work / "outside" / "secret.txt"
    outside.parent.mkdir()
    outside.write_text("SECRET " * 100)
    own, log = work / "project", work / "acts"
    (work / "watch").mkdir()
    values = {"own": str(own), "root": str(ROOT), "log": str(log)}
    watch = WATCH.format(**values)
    (work / "watch" / "sitecustomize.py").write_text(watch)
    os.environ |= {"PYTHONPATH": str(work / "watch"), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    files = sound()
    beside = files.pop("p.pdf") if not has_pypdf() else b""
    print(f"{'with' if not beside else 'without'} PDF", flush=True)

    def lying(files: Files) -> Callable[[Path], None]:
        def lay(folder: Path) -> None:
            for name, data in files.items():
                (folder / name).write_bytes(data)

        return lay

    def cases() -> Iterator[tuple[str, Callable[[Path], None]]]:
        for name, data in files.items():
            yield f"sound {name}", lying({name: data})
        for name, make in special(outside).items():
            yield name, lambda folder, make=make: make(folder / "special")
        for name, made in bombs(outside):
            if not ("PDF" in name and beside):
                yield name, lying(made())
        for number in range(count):
            case = mutated(files, random.Random(f"{seed} {number}"))
            yield f"mutated {number} {next(iter(case))}", lying(case)

    results: dict[str, Counter] = {}
    for number, (name, lay) in enumerate(cases()):
        shutil.rmtree(own, ignore_errors=True)
        (own / "data" / "input").mkdir(parents=True)
        lay(own / "data" / "input")
        if number % 2 or "special" in name or "link" in name:
            (own / "data" / "input" / "beside.txt").write_bytes(files["a.txt"])
        log.write_text("")
        result, seconds, memory = outcome(own, watch)
        if acts := log.read_text():
            result = f"FAILED: it did {acts[:300]}"
        if memory > MEMORY:
            result = f"FAILED: {memory >> 20:,} MiB more ({result})"
        kind = name.split()[0] if name.startswith(("mutated", "sound")) else "forged"
        results.setdefault(kind, Counter())[result.partition(":")[0]] += 1
        if kind == "forged" or result.startswith("FAILED"):
            print(f"  {seconds:5.1f} s {memory >> 20:5,} MiB  {name}: {result[:250]}", flush=True)
    for kind, counts in results.items():
        print(f"{kind}: {held(counts)}", flush=True)


def has_pypdf() -> bool:
    """Whether PDF can be read."""
    return importlib.util.find_spec("pypdf") is not None


def outcome(own: Path, watch: str) -> tuple[str, float, int]:
    """What `corpus` made of a project, in a child: how it went, seconds, and bytes of memory."""
    reader, writer = os.pipe()
    began = time.monotonic()
    pid = os.fork()
    if not pid:
        os.setpgid(0, 0)
        os.close(reader)
        with project(own):
            exec(watch, {})
            os.write(writer, told(own).encode("utf-8", "replace"))
        os._exit(0)
    os.close(writer)
    first, peak, late = 0, 0, []
    while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        now = memory_of(pid)
        first, peak = first or now, max(peak, now)
        with suppress(OSError):
            if sum(map(cpu_seconds, family(pid))) > SECONDS:
                late = [os.kill(int(each), signal.SIGKILL) for each in family(pid)]
        time.sleep(0.01)
    os.waitpid(pid, 0)
    with os.fdopen(reader, errors="replace") as pipe:
        result = pipe.read()
    seconds = time.monotonic() - began
    if not result:
        result = f"FAILED: {'it never ended' if late else 'it crashed'}"
    return result, seconds, peak - first


def told(own: Path) -> str:
    """Run the stage; returns how it went."""
    try:
        with redirect_stdout(io.StringIO()) as output:
            corpus.main()
    except UserError as error:
        if "SECRET" in str(error):
            return f"FAILED: told what is outside: {error}"
        return f"refused: {error}"
    except BaseException as error:
        return f"FAILED: {type(error).__name__} {error!s:.200}"
    finally:
        stop()
    left_out = [line for line in output.getvalue().split("\n") if line.startswith("not used")]
    return f"left out: {left_out[0]}" if left_out else "read"


def family(process: int) -> list[int | str]:
    """A process and its children.

    Raises:
        OSError: it has ended.
    """
    return [process, *Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def memory_of(process: int, mapped: bool = False) -> int:
    """Bytes that a process and its children have in memory; `mapped` from files is as you say."""
    total = 0
    with suppress(OSError):
        for each in family(process):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            name = "VmRSS:" if mapped else "RssAnon:"
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    return total


# Stages as commands -------------------------------------------------------------------------------


def copied(work: Path) -> Path:
    """A project with the committed code and nothing to learn from."""
    own = Path(tempfile.mkdtemp(dir=work))
    archive = ["git", "archive", "HEAD"]
    content = subprocess.run(archive, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "x"], cwd=own, input=content, check=True)
    (own / "metrics" / "corpus.json").unlink(missing_ok=True)
    return own


def start(own: Path, stage: str) -> subprocess.Popen:
    """Begin a stage."""
    environment = os.environ | {"PYTHONPATH": ""}
    with (own / "output").open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=own, env=environment, stdout=output, stderr=output,
        )  # fmt: skip


def made(own: Path) -> dict[str, bytes]:
    """The outputs of both stages, and whatever temporary file lies there."""
    files = [own / "metrics" / "corpus.json", *(own / "models" / "tokens").glob("*")]
    files += own.rglob(".*.tmp")
    return {str(path.relative_to(own)): path.read_bytes() for path in files if path.exists()}


def killed(work: Path, moments: int, seed: int) -> None:
    """Print for each stage how many kills left no trace."""
    own = copied(work)
    for number in range(40):
        for name, data in sound(number).items():
            if name[0] not in "ghjlp":  # records, and what needs a package
                (own / "data" / "input" / f"{number}{name}").write_bytes(data)
    seconds = {}
    for stage in ("corpus", "tokenize_text"):
        began = time.monotonic()
        assert start(own, stage).wait() == 0, (own / "output").read_text()
        seconds[stage] = time.monotonic() - began
    whole, draw = made(own), random.Random(seed)
    for stage, taken in seconds.items():
        results: Counter = Counter()
        for number in range(moments):
            shutil.rmtree(own / "models" / "tokens")
            (own / "metrics" / "corpus.json").unlink()
            if stage == "tokenize_text":
                start(own, "corpus").wait()
            process = start(own, stage)
            moment = taken * (number + draw.random()) / moments
            time.sleep(moment)
            process.kill()
            ended = process.wait() != -signal.SIGKILL
            limit = time.monotonic() + LEFT_SECONDS
            while (left := running_in(own)) and time.monotonic() < limit:
                time.sleep(0.05)
            codes = [start(own, name).wait() for name in seconds]
            wrong = [
                name for name in made(own).keys() | whole if made(own).get(name) != whole.get(name)
            ]
            good = codes == [0, 0] and not wrong and not left
            result = "ended before" if ended else "the same bytes"
            if not good:
                result = f"FAILED: after {moment:.2f} s: {codes} {wrong} {left}"
                print(f"  {stage} {result}", flush=True)
            results[result] += 1
        print(f"{stage} of {taken:.1f} s: {held(results)}", flush=True)


def running_in(folder: Path) -> list[str]:
    """The processes that work in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with suppress(OSError):
            found += [link.parent.name] if link.readlink() == folder else []
    return found


def large(work: Path, sizes: list[int]) -> None:
    """Print seconds, memory and disk for each size, of a folder and of one file."""
    for size in sizes:
        text = work / "text"
        write_sentences(text, size)
        for kind in ("folder", "file"):
            own = copied(work)
            if kind == "file":
                text.rename(own / "data" / "input.txt")
            else:
                with text.open("rb") as source:
                    for number in range(2000):
                        part = source.read(size // 2000)
                        (own / "data" / "input" / f"{number}.txt").write_bytes(part)
            trained = kind == "folder" and size == max(sizes)
            for stage in ("corpus", "tokenize_text", *["train"] * trained):
                figures = measured(own, stage, 60 if stage == "train" else 0)
                print(f"{size:,} bytes, {kind}, {stage}: {figures}", flush=True)
            tokens = sum(path.stat().st_size for path in (own / "models" / "tokens").glob("*"))
            print(f"{size:,} bytes, {kind}: tokens take {tokens:,} bytes", flush=True)
            print((own / "output").read_text()[-600:], flush=True)
            shutil.rmtree(own)


def write_sentences(path: Path, size: int) -> None:
    """A text of `size` bytes, a sentence a line, drawn from 200,000 sentences of made-up words."""
    draw = random.Random(1)
    words = [
        "".join(draw.choices("etaoinshrdlucmfw", k=draw.randrange(2, 10))) for _ in range(50_000)
    ]
    sentences = [" ".join(draw.choices(words, k=15)).capitalize() + ".\n" for _ in range(200_000)]
    with path.open("w") as file:
        while file.tell() < size:
            file.writelines(draw.choices(sentences, k=10_000))
        file.truncate(size)


def measured(own: Path, stage: str, limit: float) -> str:
    """Seconds, memory and disk of a stage, which Ctrl-C stops after `limit` seconds unless 0."""
    before = shutil.disk_usage(own).used
    processor, began = processor_seconds(), time.monotonic()
    process = start(own, stage)
    private, resident, disk = 0, 0, 0
    while process.poll() is None:
        resident = max(resident, memory_of(process.pid, mapped=True))
        private = max(private, memory_of(process.pid))
        disk = max(disk, shutil.disk_usage(own).used - before)
        if limit and time.monotonic() - began > limit:
            process.send_signal(signal.SIGINT)
            limit = 0
        time.sleep(0.05)
    seconds, used = time.monotonic() - began, processor_seconds() - processor
    return (
        f"{seconds:.1f} s, {used:.1f} s of processors, exit {process.returncode}, at most "
        f"{resident / 1e6:,.0f} MB of memory ({private / 1e6:,.0f} MB not mapped from files), "
        f"{disk / 1e6:,.0f} MB of disk"
    )


def main() -> None:
    """Print the number of cases tried and held, or the measurements."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("what", choices=("forged", "killed", "large"))
    parser.add_argument("--mutated", type=int, default=2000)
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--bytes", type=int, nargs="+", default=[200_000_000, 2_000_000_000])
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name).resolve()
        if asked.what == "forged":
            forged(work, asked.mutated, asked.seed)
        elif asked.what == "killed":
            killed(work, asked.moments, asked.seed)
        else:
            large(work, asked.bytes)


if __name__ == "__main__":
    main()
