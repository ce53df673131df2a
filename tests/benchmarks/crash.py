"""Kills and failing system calls during training must not change its result. Linux only.

    python tests/benchmarks/crash.py --every 5 --kills 50      a look, in a minute or two
    python tests/benchmarks/crash.py --every 1 --kills 1000    every case, in an hour or two

A copy of the project trains a tiny model, with dropout, averaging and accumulation, through the
real `stages.train`; something goes wrong; the same command runs again. A case holds if
`checkpoint.pt`, `loss.tsv` and `train.json` then have the bytes of a run that nothing happened to,
`training.log` has every epoch once, no temporary file is left, and, in between, every file there
was loads. Printed for each line: cases tried, cases held; those that did not hold follow.

Every launch is a fork of this process, which has torch imported. System calls are made to fail by
`strace`, full disks are small tmpfs, which need root; their lines are left out without these.
"""

import argparse
import dataclasses
import errno
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(tempfile.mkdtemp(prefix="crash-")).resolve()
shutil.copytree(ROOT / "stages", WORK / "stages", ignore=shutil.ignore_patterns("__pycache__"))
shutil.copy(ROOT / "dvc.yaml", WORK)  # a stage looks up there what must not change meanwhile
sys.path.insert(0, str(WORK))  # the code under test lies in the folder it writes to

from stages import train  # noqa: E402
from stages.lm.core import files, own_code, paths  # noqa: E402
from stages.lm.core.artifact import content_digest, read_artifact  # noqa: E402
from stages.lm.core.files import read_json, sha256_file  # noqa: E402
from stages.lm.core.stage import run_stage  # noqa: E402
from stages.lm.model.checkpoint import Checkpoint  # noqa: E402
from stages.lm.model.transformer import Transformer  # noqa: E402
from stages.lm.settings.model import ModelSettings  # noqa: E402
from stages.lm.settings.train import TrainSettings  # noqa: E402
from stages.lm.training import resume  # noqa: E402

SMALL: dict[str, dict[str, Any]] = {
    "tokenize": {"vocab_size": 300},
    "model": {
        **{"layers": 1, "heads": 4, "kv_heads": 4, "width": 32, "ff_width": 64, "context": 16},
        **{"dropout": 0.1, "init": "bigrams"},
    },
    "train": {
        **{
            "epochs": 3,
            "batch_size": 4,
            "accumulate": 2,
            "ema_decay": 0.9,
            "final_lr_fraction": 0.1,
        },
        **{"precision": "float32", "compile": "off"},
    },
    "runtime": {"device": "cpu", "checkpoint_steps": 2, "threads": 1},
}
OUTPUTS = (paths.CHECKPOINT, paths.TRAIN_METRICS, paths.LOSS_CURVE)
FOLDERS = (WORK / "models", WORK / "metrics")
Hook = Callable[[], None]
Cases = Iterator[tuple[str, str]]
"""What was done, and what was wrong afterwards (empty: nothing)."""


# The project ------------------------------------------------------------------------------------


def set_params(changes: dict[str, dict[str, Any]]) -> None:
    """Change settings of the copy."""
    path = paths.PARAMS if paths.PARAMS.exists() else ROOT / "params.yaml"
    params = yaml.safe_load(path.read_text("utf-8"))
    for section, values in changes.items():
        params[section] |= values
    paths.PARAMS.write_text(yaml.safe_dump(params), "utf-8")


def write_text(changed: str = "") -> None:
    """A small text of made-up words."""
    draw = random.Random(1)
    words = ["".join(draw.choices("etaoinshrd", k=4)) for _ in range(60)]
    lines = [" ".join(draw.choices(words, k=8)) for _ in range(45)]
    paths.INPUT.parent.mkdir(exist_ok=True)
    paths.INPUT.write_text("\n".join(lines) + changed, "utf-8")


def tokenize() -> None:
    """Run the stage before this one, in a child, so that its modules are not imported here."""

    def stage() -> None:
        from stages import tokenize_text

        tokenize_text.main()
        os._exit(0)

    assert launch(stage).code == 0


@dataclasses.dataclass
class End:
    """How a launch ended."""

    code: int
    """The exit code, or minus the number of the signal."""
    text: str
    """What it printed."""


def start(hook: Hook) -> int:
    """Begin the stage in a child, after `hook`; returns its pid."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    try:
        output = os.open(WORK / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        digest_code()
        hook()
        run_stage(train.main)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(1)


def digest_code() -> None:
    """What importing `own_code` does in a process that is no fork."""
    own_code.VERSIONS.update(own_code.versions_in(own_code.STAGES))
    for name in own_code.SHA256:
        own_code.SHA256[name] = sha256_file(WORK / name)


def wait(pid: int) -> End:
    """Wait for a child to end."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return End(code, (WORK / "output").read_text("utf-8"))


def launch(hook: Hook = lambda: None) -> End:
    """Run the stage in a child, after `hook`."""
    return wait(start(hook))


def fill(folder: Path, source: Path | None = None) -> None:
    """Give `folder`, which may be a mount, the contents of `source`, or none but the tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path != paths.TOKENS:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if source:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def reset(saved: Path | None = None) -> None:
    """Begin anew, or at the state that `keep` kept."""
    for folder in FOLDERS:
        fill(folder, saved and saved / folder.name)


def keep(name: str, hook: Hook) -> Path:
    """What lies there after a launch that ends in `hook`."""
    reset()
    launch(hook)
    for folder in FOLDERS:
        shutil.copytree(folder, WORK / name / folder.name)
    return WORK / name


def state_file() -> Path | None:
    """The one state there is."""
    return next(paths.resume_folder().glob("*/state.pt"), None)


class Reference:
    """A run that nothing happened to."""

    def __init__(self) -> None:
        began = time.monotonic()
        reset()
        end = launch()
        assert end.code == 0, end.text
        self.seconds = time.monotonic() - began
        self.steps = int(re.findall(r"epochs = (\d+) steps", end.text)[0])
        self.digests = [sha256_file(path) for path in OUTPUTS]

    def problem(self) -> str:
        """What is wrong with what lies there, after the same command once more."""
        if text := unsound():
            return text
        end = launch()
        if end.code or "Traceback" in end.text:
            return f"the next run ended with {end.code}: {end.text[-400:]}"
        wrong = [
            path.name
            for path, digest in zip(OUTPUTS, self.digests, strict=True)
            if sha256_file(path) != digest
        ]
        wrong += [path.name for path in WORK.rglob(".*.tmp")]
        log = paths.TRAINING_LOG.read_text("utf-8")
        counts = [len(re.findall(rf"  epoch {epoch}/3  .*written", log)) for epoch in (1, 2, 3)]
        if counts != [1, 1, 1]:
            wrong.append(f"epochs in the log: {counts}")
        return f"not as in an undisturbed run: {wrong}" if wrong else ""


def unsound() -> str:
    """Which of the files that lie there do not load."""
    try:
        if path := state_file():
            read_artifact(path, {resume.KIND: resume.VERSION})
        if paths.CHECKPOINT.exists():
            Checkpoint.load(paths.CHECKPOINT).build()
        if paths.TRAIN_METRICS.exists():
            read_json(paths.TRAIN_METRICS)
        curve = paths.LOSS_CURVE.read_text() if paths.LOSS_CURVE.exists() else "\n"
        return "" if curve.endswith("\n") else "loss.tsv is cut off"
    except Exception as error:
        return f"{error}"


def one_sentence(end: End, *words: str) -> str:
    """What is wrong with how a run that cannot go on said so."""
    said = re.findall(r"error: .*[.]$", end.text, re.MULTILINE)
    if end.code != 1 or "Traceback" in end.text or len(said) != 1:
        return f"ended with {end.code}: {end.text[-1000:]}"
    missing = [word for word in words if word not in said[0]]
    return f"{missing} not in: {said[0]}" if missing else ""


# What goes wrong ---------------------------------------------------------------------------------


def after(steps: int, number: int) -> Hook:
    """Send the process a signal after so many of its steps, before what is saved there."""

    def hook() -> None:
        calls, real = itertools.count(1), train.StopSignal.requested

        def requested(self: train.StopSignal) -> bool:
            if next(calls) == steps:
                os.kill(os.getpid(), number)
            return real(self)

        train.StopSignal.requested = requested

    return hook


def temporary_name(path: Path) -> Path:
    """Instead of the random one, so that `strace` can be told about it."""
    return path.with_name(f".{path.name}.00000000.tmp")


def in_first_save(leave: bool) -> Hook:
    """Stop the process where it begins to save its state; `leave`: it ends with code 0 after."""

    def hook() -> None:
        calls, real = itertools.count(1), resume.ResumeStore.save

        def save(self: resume.ResumeStore, content: dict[str, Any]) -> None:
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGSTOP)
            real(self, content)
            if leave:
                os._exit(0)

        resume.ResumeStore.save = save
        files.temporary_name = temporary_name

    return hook


def poisoned(step: int, part: int, gradient: bool) -> Hook:
    """Put a NaN into the loss of one part of a step's batch, or into one number of its gradient."""

    def hook() -> None:
        calls, passes = itertools.count(1), itertools.count(1)
        real, clip = Transformer.forward, torch.nn.utils.clip_grad_norm_
        wanted = (step - 1) * SMALL["train"]["accumulate"] + part

        def forward(self: Transformer, *args: Any, **named: Any) -> Any:
            loss = real(self, *args, **named)
            hit = self.training and torch.is_grad_enabled() and next(passes) == wanted
            return loss * float("nan") if hit and not gradient else loss

        def clip_grad_norm_(parameters: Any, limit: float) -> Any:
            parameters = list(parameters)
            if gradient and next(calls) == step:
                parameters[part].grad.view(-1)[0] = float("nan")
            return clip(parameters, limit)

        Transformer.forward = forward
        torch.nn.utils.clip_grad_norm_ = clip_grad_norm_

    return hook


def traced(hook: Hook, *options: str) -> End:
    """Launch, and attach strace with `options` where the process stops itself."""
    pid = start(hook)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    command = ["strace", "-o", str(WORK / "calls"), "-p", str(pid), *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr
        assert "attached" in strace.stderr.readline()
        os.kill(pid, signal.SIGCONT)
        return wait(pid)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Have `folder` on a tmpfs of its own for the block."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


# Lines -------------------------------------------------------------------------------------------


def killed_after_a_step(whole: Reference, every: int) -> Cases:
    """SIGKILL after each step, and then again after every third one of what continues it."""
    for step in range(1, whole.steps + 1, every):
        reset()
        end = launch(after(step, signal.SIGKILL))
        kills = 1
        while end.code == -signal.SIGKILL and kills < whole.steps:
            end, kills = launch(after(3, signal.SIGKILL)), kills + 1
        yield f"step {step}", whole.problem() if end.code == 0 else f"no progress: {end}"


def killed_at_an_instant(whole: Reference, kills: int, seed: int) -> Cases:
    """SIGKILL at instants drawn evenly over a whole run."""
    draw = random.Random(seed)
    done, seconds = 0, whole.seconds
    while done < kills:
        reset()
        pid = start(lambda: None)
        time.sleep(draw.uniform(0, seconds))
        os.kill(pid, signal.SIGKILL)
        if wait(pid).code == 0:  # it was faster; how fast the machine is changes
            seconds *= 0.9
            continue
        done, seconds = done + 1, seconds * 1.01
        inside = [path.name for path in WORK.rglob(".*.tmp")]
        yield f"{'inside' if inside else 'outside'} a save {inside}", whole.problem()


def asked_to_stop(whole: Reference, every: int) -> Cases:
    """SIGINT and SIGTERM after each step."""
    for step in range(1, whole.steps, every):
        for number in (signal.SIGINT, signal.SIGTERM):
            reset()
            end = launch(after(step, number))
            good = (
                end.code == 128 + number
                and f"stopped after step {step} of" in end.text
                and "Run the same command again to continue." in end.text
            )
            yield f"{number.name} at {step}", whole.problem() if good else f"{end}"


def calls_of(saved: Path | None, *options: str) -> list[tuple[str, int]]:
    """The system calls of a save as strace counts them: each by its name, and the how manieth."""
    reset(saved)
    assert traced(in_first_save(leave=saved is None), *options).code == 0
    names = re.findall(r"^(\w+)\(", (WORK / "calls").read_text(), re.MULTILINE)
    return [(name, names[: place + 1].count(name)) for place, name in enumerate(names)]


def killed_in_a_save(whole: Reference, saved: Path | None, every: int) -> Cases:
    """SIGKILL at each system call: of the first save, or from the last save to the end."""
    for name, number in calls_of(saved)[::every]:
        reset(saved)
        inject = f"inject={name}:signal=KILL:when={number}"
        end = traced(in_first_save(leave=saved is None), "-e", inject)
        if end.code == 0:  # a call for memory, which is not in every run
            continue
        lost = "" if saved is None or state_file() else "the state is gone"
        yield f"{name} {number}", lost or whole.problem()


def failing_in_a_save(whole: Reference, saved: Path, every: int, error: str) -> Cases:
    """An error at each system call from the last save to the end that touches the project."""
    reset(saved)
    written = [path for path in (state_file(), *OUTPUTS) if path]
    touched = {path.parent for path in written} | {*written, paths.TRAINING_LOG}
    touched |= {temporary_name(path) for path in written}
    options = [word for path in sorted(touched) for word in ("-P", str(path))]
    options += ["-e", "trace=openat,write,fsync,rename,close,unlink,lseek,mkdir"]
    for name, number in calls_of(saved, *options)[::every]:
        reset(saved)
        inject = f"inject={name}:error={error}:when={number}"
        end = traced(in_first_save(leave=False), *options, "-e", inject)
        wrong = unsound()
        if end.code:  # Python passes over some: a folder that cannot be made, but is there
            wrong = wrong or one_sentence(end, os.strerror(getattr(errno, error)))
        yield f"{error} at {name} {number}", wrong or whole.problem()


def full_disk(whole: Reference, saved: Path, folder: Path, every: int) -> Cases:
    """A disk with 0, 1, 2, ... free pages, until there are enough."""
    for pages in itertools.count(0, every):
        with small_disk(folder):
            reset(saved)
            filler = folder / "filler"
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(1 << 12))
                except OSError:
                    file.truncate(max(0, file.tell() - (pages << 12)))
            end = launch()
            filler.unlink()
            if end.code == 0:
                return
            wrong = unsound() or one_sentence(end, os.strerror(errno.ENOSPC))
            yield f"{pages} pages free", wrong or whole.problem()


def no_number(whole: Reference, every: int) -> Cases:
    """A NaN in the loss of each part of each step, and in the gradient of each step."""
    set_params({"runtime": {"checkpoint_steps": 1}})
    weights = weights_of_every_step()
    set_params({"runtime": {"checkpoint_steps": 0}})
    for step in range(1, whole.steps + 1, every):
        for part, gradient in ((1, False), (2, False), (step % 5, True)):
            reset()
            end = launch(poisoned(step, part, gradient))
            case = f"{'gradient' if gradient else f'loss of part {part}'} of step {step}"
            wrong = one_sentence(end, f"step {step}:", "nan", "usual causes", "train.lr")
            log = paths.TRAINING_LOG.read_text("utf-8")
            if not re.search(rf"  training stopped at step {step}: .* usual causes .*\n", log):
                wrong = wrong or f"not in the log: {log}"
            path = state_file()
            if step > 1 and not wrong:
                assert path
                kept = good_part(read_artifact(path, {resume.KIND: resume.VERSION})[1])
                wrong = "" if kept == weights[step - 2] else "not the last good step's state"
            yield case, wrong or whole.problem()
    set_params(SMALL)


def good_part(content: dict[str, Any]) -> str:
    """A digest of what a state holds of a model, besides times."""
    parts = ("model", "optimizers", "ema", "best", "random")
    step = content["progress"]["step"]
    return f"{step} " + content_digest({part: content[part] for part in parts})


def weights_of_every_step() -> list[str]:
    """The digest of the state after each step of an undisturbed run."""
    list_file = WORK / "digests"

    def hook() -> None:
        real = resume.ResumeStore.save

        def save(self: resume.ResumeStore, content: dict[str, Any]) -> None:
            with list_file.open("a") as file:
                file.write(good_part(content) + "\n")
            real(self, content)

        resume.ResumeStore.save = save
        files.temporary_name = temporary_name

    reset()
    assert launch(hook).code == 0
    return list(dict.fromkeys(list_file.read_text().splitlines()))


OTHER_WORDS = {
    **{"qwen3": "gpt2", "muon": "adamw", "float32": "bf16", "off": "auto", "random": "bigrams"},
    "all": "attention",
}


def other(key: str, value: Any) -> Any:
    """Another value that a setting may have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHER_WORDS[value]
    if isinstance(value, int):
        return value // 2 if key == "kv_heads" else 2 * value or 1
    return value / 2 or 0.5


def stale(every: int) -> Cases:
    """Every setting, the text, the tokenizer and every code file changed in turn, and back."""
    set_params({"model": {"init": "random"}})
    saved = keep("stale", after(3, signal.SIGTERM))
    record = read_json(next(paths.resume_folder().glob("*/run.json")))
    one_step = after(1, signal.SIGKILL)
    files = [name for name in record if name.endswith(".py")]
    settings = [
        (cls.SECTION, field.name)
        for cls in (ModelSettings, TrainSettings)
        for field in dataclasses.fields(cls)
        if field.name != "adapt"  # refused, unless there are weights to start from
    ]
    changes: list[tuple[str, Hook]] = []
    for section, key in settings:
        value = other(key, record[f"{section}.{key}"])

        def set_one(section: str = section, key: str = key, value: Any = value) -> None:
            set_params({section: {key: value}})

        changes.append((f"{section}.{key} changed from", set_one))
    for name in files:
        changes.append((f"{name} changed", lambda name=name: edit(WORK / name, b"# edited\n")))
    data = "the token data changed"
    changes.append((data, lambda: (write_text("!"), tokenize())))
    for values in ({"vocab_size": 299}, {"pattern": "qwen2"}, {"val_fraction": 0.06}):

        def tokenize_by(values: dict[str, Any] = values) -> None:
            set_params({"tokenize": values})
            tokenize()

        changes.append((data, tokenize_by))
    backup = WORK / "backup"
    for reason, change in changes[::every]:
        fill(backup)
        kept = ("stages", "data", "params.yaml", "models/tokens")
        for name in kept:
            copy(WORK / name, backup / name)
        reset(saved)
        change()
        text = launch(one_step).text
        named = rf"starting fresh: since the last run .*{re.escape(reason)}"
        good = re.search(named, text) and "continuing" not in text
        for name in kept:
            copy(backup / name, WORK / name)
        again = launch(one_step).text
        wrong = "" if good else f"expected {reason!r}: {text[-500:]}"
        if "continuing at step 3 of" not in again:
            wrong += f"changed back, it does not continue: {again[-500:]}"
        yield reason, wrong
    reset(saved)
    edit(paths.TOKENS / "tokenizer.tiktoken", b"\n")
    yield (
        "tokenizer.tiktoken edited",
        one_sentence(launch(one_step), "tokenizer.tiktoken is not what was written"),
    )
    copy(backup / "models/tokens", paths.TOKENS)
    set_params(SMALL)


def edit(path: Path, more: bytes) -> None:
    """Add to a file."""
    path.write_bytes(path.read_bytes() + more)


def copy(source: Path, target: Path) -> None:
    """Make `target` a copy of `source`, a file or a folder."""
    if source.is_file():
        shutil.copy(source, target)
    else:
        fill(target, source)


def main() -> int:
    """Try every line; returns 1 if any case did not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=5, help="of the listed cases, each how many")
    parser.add_argument("--kills", type=int, default=50, help="kills at random instants")
    parser.add_argument("--seed", type=int, default=1, help="of those instants")
    parser.add_argument("--only", default="", help="lines whose names match this")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process with torch's threads running cannot be forked
    set_params(SMALL)
    write_text()
    tokenize()
    whole = Reference()
    print(f"a run of {whole.steps} steps takes {whole.seconds:.2f} s", flush=True)
    every = options.every
    late = keep("late", after(whole.steps - 1, signal.SIGTERM))
    lines: dict[str, Callable[[], Cases]] = {
        "SIGKILL after a step": lambda: killed_after_a_step(whole, every),
        "SIGKILL at an instant": lambda: killed_at_an_instant(whole, options.kills, options.seed),
        "SIGINT or SIGTERM after a step": lambda: asked_to_stop(whole, every),
        "NaN in a loss or gradient": lambda: no_number(whole, every),
        "a setting, text or code changed": lambda: stale(every),
    }
    if shutil.which("strace"):
        lines |= {
            "SIGKILL in the first save": lambda: killed_in_a_save(whole, None, every),
            "SIGKILL in the last save": lambda: killed_in_a_save(whole, late, every),
            "ENOSPC in a save": lambda: failing_in_a_save(whole, late, every, "ENOSPC"),
            "EIO in a save": lambda: failing_in_a_save(whole, late, every, "EIO"),
        }
    if os.geteuid() == 0:
        lines |= {
            "full disk under models/": lambda: full_disk(whole, late, FOLDERS[0], every),
            "full disk under metrics/": lambda: full_disk(whole, late, FOLDERS[1], 1),
        }
    failed = False
    for name, line in lines.items():
        if not re.search(options.only, name):
            continue
        cases = list(line())
        wrong = [f"  {case}: {problem}" for case, problem in cases if problem]
        inside = sum(case.startswith("inside") for case, _ in cases)
        print(
            f"{name:34} {len(cases):5} tried {len(cases) - len(wrong):5} held"
            + (f", {inside} inside a save" if inside else ""),
            *wrong[:5],
            sep="\n",
            flush=True,
        )
        failed |= bool(wrong) or not cases
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        shutil.rmtree(WORK)
