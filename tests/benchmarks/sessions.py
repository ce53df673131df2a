"""The page under many visitors: real sessions over Streamlit's websocket, against one server.

    PYTHONPATH=tests:. python tests/benchmarks/sessions.py

starts the page in a copy of the project with a model of random weights, and prints for each promise
how many cases were tried and how many held: texts written at once equal those of one user, there is
one model in memory and it does not grow, a stop is a stop, any prompt is text, the model's file may
be replaced or removed meanwhile, and who has left leaves nothing. Without a network:

    unshare -rn sh -c "ip link set lo up && PYTHONPATH=tests:. python tests/benchmarks/sessions.py"
"""

import argparse
import asyncio
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.Element_pb2 import Element
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from test_app import save_models
from test_end_to_end import new_project
from websockets.asyncio.client import ClientConnection, connect

from stages.lm.core import paths
from stages.lm.inference.generation import SamplingSettings, generate_text
from stages.lm.inference.loading import load_model

SHAPE = {"context": 128, "layers": 4, "heads": 8, "kv_heads": 8, "head_size": 64, "width": 512}
SHAPE |= {"ff_width": 1536}
MODEL_MB = 55
"""Its weights: enough for a second model in memory to be seen."""
SESSION_MB = 1
"""What a session may cost: its thread, its widgets, its key/value cache."""
FIRST_MB = 25
"""What the first sessions may add to that: heaps for their threads. Half a model."""
GROWTH_MB = 25
"""What the last nine tenths of the generations may add in all; half a model."""
VISIT_KB = 10
"""What one who has left may leave, on average. Streamlit keeps up to 128 sessions for two minutes,
for windows that come back, so memory grows over the first visits."""
STOP_SECONDS = 0.5
"""From a stop sent to the run's end, on an idle machine. A token takes 9 ms; Streamlit's garbage
collection at each run's end, which delays the message that it has ended, 0.2 s."""
PROMPTS = {
    "nothing": "",
    "a megabyte of words": "word " * 200_000,
    "a megabyte of one letter": "a" * 1_000_000,
    "a megabyte of spaces": " " * 1_000_000,
    "a megabyte of emoji": "🙂" * 250_000,
    "control characters": "".join(map(chr, [*range(32), *range(127, 160)])),
    "directions and marks": "\u202eabc\u2066\u200b\u2028\ufeff\ufffe a\u0301\u0301",
    "HTML": "<script>alert(1)</script><img src=x onerror=alert(1)></code></pre>",
    "Markdown": "**bold** [a](javascript:alert(1)) ![i](http://a/b.png) :red[no] $x$ ```\n# h",
    "newlines at both ends": "\n\n\r\n the \n\n",
}


class Tally:
    """Counts the cases of each promise, and names those that did not hold."""

    def __init__(self) -> None:
        self.failed = 0

    def line(self, promise: str, cases: Iterable[tuple[object, bool]]) -> None:
        """Print one promise's line."""
        outcomes = list(cases)
        broken = [str(name) for name, held in outcomes if not held]
        self.failed += len(broken)
        print(f"{promise}: {len(outcomes)} tried, {len(outcomes) - len(broken)} held", flush=True)
        for name in broken[:5]:
            print(f"    not held: {name}")


class Visitor:
    """One browser's session: sends widgets' values, keeps the elements of the latest run."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.elements: dict[tuple[int, ...], Element] = {}
        self.ids: dict[str, str] = {}
        self.values: dict[str, str | int] = {}

    @classmethod
    async def arrive(cls, port: int) -> "Visitor":
        """Open the page and wait for it."""
        url = f"ws://127.0.0.1:{port}/_stcore/stream"
        visitor = cls(await connect(url, max_size=None, open_timeout=120, ping_interval=None))
        await visitor.run()
        return visitor

    async def send(self, press: bool = False) -> None:
        """Ask for a run with the values as they are."""
        message = BackMsg()
        state = message.rerun_script.widget_states
        for key, value in self.values.items():
            widget = state.widgets.add(id=self.ids[key])
            if isinstance(value, str):
                widget.string_value = value
            else:
                widget.int_value = value
        if press:
            state.widgets.add(id=self.ids["write"], trigger_value=True)
        message.rerun_script.SetInParent()
        await self.socket.send(message.SerializeToString())

    async def receive(self) -> bool:
        """Take in one message; returns whether it ended a run."""
        message = ForwardMsg.FromString(await self.socket.recv())  # type: ignore[arg-type]
        kind = message.WhichOneof("type")
        if kind == "delta":
            place = tuple(message.metadata.delta_path)
            # What was inside what stood here goes with it.
            inside = [each for each in self.elements if each[: len(place)] == place]
            for each in inside:
                del self.elements[each]
            if message.delta.WhichOneof("type") == "new_element":
                element = self.elements[place] = message.delta.new_element
                # A widget's id ends with the key that the page gave it.
                name = getattr(getattr(element, str(element.WhichOneof("type"))), "id", "")
                self.ids[name.rpartition("-")[2]] = name
        elif kind == "new_session":
            self.elements = {}
        return kind == "script_finished"

    async def run(self, press: bool = False) -> list[str]:
        """A whole run; returns the texts on the page after it."""
        await self.send(press)
        while not await self.receive():
            pass
        return self.texts()

    def texts(self) -> list[str]:
        """The texts on the page; of its blocks of code they alone have their lines wrapped."""
        return [e.code.code_text for e in self.elements.values() if e.code.wrap_lines]

    def has(self, kind: str) -> bool:
        """Whether there is an element of this kind, such as `alert` or `exception`."""
        return any(element.WhichOneof("type") == kind for element in self.elements.values())

    async def write(self, prompt: str, length: int, seed: int = 1337) -> str:
        """Press the button; returns the text."""
        await self.begin(prompt, length, seed)
        while not await self.receive():
            pass
        (text,) = self.texts() or ["(no text)"]
        return text

    async def begin(self, prompt: str, length: int, seed: int = 1337) -> None:
        """Press the button and go on."""
        self.values |= {"prompt": prompt, "length": length, "seed": seed}
        self.elements = {}
        await self.send(press=True)

    async def stop(self) -> float:
        """Stop the run; returns how long that took."""
        began = time.perf_counter()
        await self.socket.send(BackMsg(stop_script=True).SerializeToString())
        while not await self.receive():
            pass
        return time.perf_counter() - began


class Server:
    """The page in a copy of the project, with a model of random weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = new_project(folder)
        models = self.folder / "models"
        paths.CHECKPOINT, paths.QUANTIZED = models / "checkpoint.pt", models / paths.QUANTIZED.name
        save_models(0, **SHAPE)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = ["-m", "streamlit", "run", "app/app.py", "--server.port", str(self.port)]
        with (self.folder / "server.log").open("wb") as log:
            environment = os.environ | {"PYTHONPATH": str(self.folder)}
            self.process = subprocess.Popen(
                [sys.executable, *command], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        self.seen = psutil.Process(self.process.pid)

    def wait(self) -> None:
        """Until it listens."""
        limit = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            assert self.process.poll() is None and time.monotonic() < limit, self.log()
            time.sleep(0.2)

    def log(self) -> str:
        """What it printed."""
        return (self.folder / "server.log").read_text("utf-8")

    def megabytes(self) -> float:
        """Its memory."""
        return self.seen.memory_info().rss / 1e6

    def seconds(self) -> float:
        """The processor time it has taken."""
        return sum(self.seen.cpu_times()[:2])


def expected(prompt: str, length: int, seed: int = 1337) -> str:
    """What one user of the library gets from the file as it is now."""
    model = load_model(paths.QUANTIZED)
    return prompt + generate_text(model, prompt, length, SamplingSettings(), seed)


async def at_once(server: Server, tally: Tally, count: int, length: int) -> None:
    """All sessions open and write at the same time, each with a prompt and seed of its own."""
    first = await Visitor.arrive(server.port)
    await first.write("the", 9)
    before = server.megabytes()
    visitors = [first]
    visitors += await asyncio.gather(*(Visitor.arrive(server.port) for _ in range(count - 1)))
    texts = await asyncio.gather(
        *(each.write(f"the cat {n}", length, n) for n, each in enumerate(visitors))
    )
    growth = server.megabytes() - before
    loaded = load_model(paths.QUANTIZED)
    alone = [
        f"the cat {n}" + generate_text(loaded, f"the cat {n}", length, SamplingSettings(), n)
        for n in range(count)
    ]
    pairs = enumerate(zip(texts, alone, strict=True))
    tally.line("texts written at once are those of one user", ((n, a == b) for n, (a, b) in pairs))
    print(f"    {before:.0f} MB with one session, {growth:+.1f} MB for {count - 1} more")
    tally.line(
        f"one model: sessions add less than {FIRST_MB} MB and {SESSION_MB} MB each",
        [(f"{growth:.1f} MB", growth < FIRST_MB + SESSION_MB * count)],
    )
    await leave(visitors)


async def leave(visitors: Iterable[Visitor]) -> None:
    """Close the windows."""
    await asyncio.gather(*(each.socket.close() for each in visitors))


async def growth(server: Server, tally: Tally, count: int, sessions: int) -> None:
    """Many short generations, over and over in the same sessions."""
    visitors = await asyncio.gather(*(Visitor.arrive(server.port) for _ in range(sessions)))
    want = {seed: expected("the rat", 8, seed) for seed in range(10)}
    held: list[tuple[object, bool]] = []
    sizes = []
    for turn in range(count // sessions):
        seed = turn % len(want)
        texts = await asyncio.gather(*(each.write("the rat", 8, seed) for each in visitors))
        held += [((turn, n), text == want[seed]) for n, text in enumerate(texts)]
        sizes.append(server.megabytes())
    tally.line("generations are those of one user", held)
    tenth = sizes[len(sizes) // 10]
    print(f"    {tenth:.0f} MB after a tenth of them, {sizes[-1]:.0f} MB after all")
    tally.line(
        f"the rest of them add less than {GROWTH_MB} MB",
        [(f"{sizes[-1] - tenth:.1f} MB", sizes[-1] - tenth < GROWTH_MB)],
    )
    await leave(visitors)


async def stops(server: Server, tally: Tally, count: int) -> None:
    """Stop a long text at some moment; what is there stays and is the beginning of the whole."""
    visitor = await Visitor.arrive(server.port)
    whole = expected("the", 2000)
    held, times = [], []
    for turn in range(count):
        await visitor.begin("the", 10_000)
        while not any(len(text) > 30 + 20 * turn for text in visitor.texts()):
            await visitor.receive()
        drawn = visitor.texts()[0]
        times.append(await visitor.stop())
        (text,) = await visitor.run()
        right = whole.startswith(text) and text.startswith(drawn)
        held.append((f"{turn}: {times[-1]:.3f} s", right and times[-1] < STOP_SECONDS))
    tally.line(f"stopped within {STOP_SECONDS} s, with the text so far", held)
    print(f"    {1000 * sum(times) / count:.0f} ms on average, {1000 * max(times):.0f} at most")
    held = []
    for turn in range(count):
        visitor = await Visitor.arrive(server.port)
        await visitor.begin("the", 10_000)
        while not any(len(text) > 30 for text in visitor.texts()):
            await visitor.receive()
        await leave([visitor])
        await asyncio.sleep(STOP_SECONDS)
        began = server.seconds()
        await asyncio.sleep(0.5)
        taken = server.seconds() - began
        held.append((f"{turn}: {taken:.2f} s of 0.5", taken < 0.25))
    tally.line("a window closed ends its text", held)


async def prompts(server: Server, tally: Tally) -> None:
    """Prompts of any size and content stay what they are."""
    visitor = await Visitor.arrive(server.port)
    held = []
    for name, prompt in PROMPTS.items():
        began = time.perf_counter()
        text = await visitor.write(prompt, 40)
        print(f"    {name}: {time.perf_counter() - began:.2f} s")
        held.append((name, text == expected(prompt, 40) and not visitor.has("exception")))
    tally.line("prompts are continued as they stand", held)
    await leave([visitor])


async def files(server: Server, tally: Tally, sessions: int) -> None:
    """The model's file is replaced, damaged, removed and put back while everyone writes."""
    visitors = await asyncio.gather(*(Visitor.arrive(server.port) for _ in range(sessions)))
    held = []

    async def during(name: str, change: Callable[[], object]) -> None:
        """Change the file in the middle of all texts; they end as they began."""
        want = expected("the", 200)
        for each in visitors:
            await each.begin("the", 200)
        for each in visitors:
            while not any(len(text) > 30 for text in each.texts()):
                await each.receive()
        change()
        for n, each in enumerate(visitors):
            while not await each.receive():
                pass
            held.append(((name, n), each.texts() == [want]))

    async def after(name: str, kind: str) -> None:
        """The next run shows a new text, or says in a sentence why there is none."""
        want = expected("the", 20) if kind == "code" else ""
        for n, each in enumerate(visitors):
            text = await each.write("the", 20)
            right = text == want if kind == "code" else each.has(kind)
            held.append(((name, n), right and not each.has("exception")))

    for seed in range(1, 4):
        await during("replaced", lambda seed=seed: save_models(seed, **SHAPE))
        await after("the new model", "code")
    await during("damaged", lambda: paths.QUANTIZED.write_bytes(b"PK not a model"))
    await after("a sentence on damage", "alert")
    save_models(7, **SHAPE)
    await after("put back", "code")
    await during("removed", paths.QUANTIZED.unlink)
    await after("a sentence on absence", "alert")
    save_models(8, **SHAPE)
    await after("put back", "code")
    tally.line("texts and pages where the model's file changes", held)
    await leave(visitors)


async def replacements(server: Server, tally: Tally, count: int) -> None:
    """The file is replaced again and again; the page keeps two models and no more."""
    visitor = await Visitor.arrive(server.port)
    copy = paths.QUANTIZED.with_name("copy.pt")
    sizes = []
    for _ in range(count):
        shutil.copy(paths.QUANTIZED, copy)
        copy.replace(paths.QUANTIZED)
        await visitor.write("the", 2)
        sizes.append(server.megabytes())
    # Not the largest: when freed memory goes back to the system is chance, 100 MB either way.
    usual = statistics.median(sizes[: count // 2]), statistics.median(sizes[count // 2 :])
    print(f"    {usual[0]:.0f} MB in the first half (median), {usual[1]:.0f} MB in the second")
    tally.line(
        f"the second half of {count} replacements adds less than a model of {MODEL_MB} MB",
        [(usual, usual[1] - usual[0] < MODEL_MB)],
    )
    await leave([visitor])


async def visits(server: Server, tally: Tally, count: int) -> None:
    """One after another: open the page, write 20 tokens with a tiny model, leave."""
    save_models()
    want = expected("the", 20)
    held: list[tuple[object, bool]] = []
    sizes = []
    for turn in range(count):
        visitor = await Visitor.arrive(server.port)
        held.append((turn, await visitor.write("the", 20) == want))
        await leave([visitor])
        sizes.append(server.megabytes())
        if len(sizes) % 100 == 0:
            print(f"    {sizes[-1]:.0f} MB after {len(sizes)}", flush=True)
    tally.line("visitors one after another get the text", held)
    growth = 1000 * (sizes[-1] - sizes[count // 2]) / (count - count // 2)
    tally.line(
        f"each visit of the second half adds less than {VISIT_KB} kB",
        [(f"{growth:.1f} kB", growth < VISIT_KB)],
    )
    print(f"    {growth:.1f} kB")


async def all_of(server: Server, tally: Tally, asked: argparse.Namespace) -> None:
    """One promise after the other."""
    promises = {
        "at_once": partial(at_once, count=asked.sessions, length=asked.length),
        "growth": partial(growth, count=asked.generations, sessions=min(10, asked.sessions)),
        "stops": partial(stops, count=asked.stops),
        "prompts": prompts,
        "files": partial(files, sessions=min(10, asked.sessions)),
        "replacements": partial(replacements, count=asked.replacements),
        "visits": partial(visits, count=asked.visits),
    }
    for name, promise in promises.items():
        if re.search(asked.only, name):
            await promise(server, tally)
    log = server.log()
    tally.line("no error in the server's log", [(log[-2000:], "Traceback" not in log)])


def main() -> int:
    """Start a server, visit it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=100, help="at once (%(default)s)")
    parser.add_argument("--length", type=int, default=60, help="tokens of each (%(default)s)")
    parser.add_argument("--generations", type=int, default=1000, help="one by one (%(default)s)")
    parser.add_argument("--stops", type=int, default=20, help="texts to stop (%(default)s)")
    parser.add_argument("--replacements", type=int, default=100, help="of the file (%(default)s)")
    parser.add_argument("--visits", type=int, default=1000, help="one by one (%(default)s)")
    parser.add_argument("--only", default="", help="promises whose functions' names match this")
    asked = parser.parse_args()
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "project")
        try:
            server.wait()
            asyncio.run(all_of(server, tally, asked))
        finally:
            server.process.terminate()
            server.process.wait()
    return int(tally.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
