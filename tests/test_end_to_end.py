"""The pipeline as a user runs it: real DVC, a process for every stage, a small text.

The processes are forks of a warm one (`warm.py`); what is started with a new interpreter says so.
"""

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import warm
import yaml
from filelock import FileLock
from test_readme import COMMANDS as README

from stages.lm.core.artifact import artifact_id
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.text.tokenizer import PATTERNS

ROOT = Path(__file__).parents[1]
SMALL = {
    "tokenize": {"vocab_size": 300},
    "model": {
        **{"layers": 1, "heads": 2, "kv_heads": 2, "width": 32, "ff_width": 64, "context": 16},
        **{"dropout": 0.1, "init": "bigrams"},
    },
    "train": {"epochs": 3, "batch_size": 8, "accumulate": 2, "precision": "float32"},
    "evaluate": {"min_context": 4, "samples": 1, "sample_tokens": 8},
    "runtime": {"checkpoint_steps": 2, "threads": 1},
}
COMMANDS = [line for line in README if line.startswith(("dvc ", "python -m "))]
OUTPUTS = ("models/checkpoint.pt", "metrics/loss.tsv", "metrics/train.json")


IDENTITY = {
    **{"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.org"},
    **{"GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.org"},
}


def git(folder: Path, *arguments: str) -> str:
    """What `git ARGUMENTS` prints in a folder."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=os.environ | IDENTITY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What came of `python WORDS` in a folder."""
    done = warm.python(folder, *words, **IDENTITY)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def dvc(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """What came of `dvc ARGUMENTS` in a folder."""
    return python(folder, "-m", "dvc", *arguments, check=check)


def set_params(folder: Path, changes: dict) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text("utf-8"))
    for name, value in changes.items():
        params[name] = params[name] | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(params, sort_keys=False), "utf-8")


def small_text(words: int = 2_000) -> str:
    draw = random.Random(1)
    vocabulary = ["".join(draw.choices("etaoin shrdlu"[:10], k=4)) for _ in range(60)]
    return "\n".join(" ".join(draw.choices(vocabulary, k=8)) for _ in range(words // 8))


def new_project(folder: Path) -> Path:
    """A clone in a folder of its own, with small settings and a small text."""
    folder.mkdir()
    files = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    for name in files.splitlines():
        top = name.split("/")[0]
        if top in {"tests", "metrics"} or name in {"dvc.lock"} or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    set_params(folder, SMALL)
    (folder / "data" / "input.txt").write_text(small_text(), "utf-8")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "start")
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory, worker_id):
    """A project after its first `dvc repro`, a copy for each worker. Tests leave it as it is."""
    shared = tmp_path_factory.getbasetemp()
    shared = (shared if worker_id == "master" else shared.parent) / "built"
    with FileLock(shared.with_suffix(".lock")):
        if not shared.exists():
            folder = new_project(shared.with_name("begun"))
            dvc(folder, "repro")
            git(folder, "add", "-A")
            git(folder, "commit", "-qm", "built")
            folder.rename(shared)
    return shutil.copytree(shared, tmp_path_factory.mktemp("built") / "project")


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in OUTPUTS}


def changed_stages(folder: Path) -> set[str]:
    return set(json.loads(dvc(folder, "status", "--json").stdout))


def test_repro_builds_every_artifact_and_a_second_one_does_nothing(built):
    for name in (*OUTPUTS, "models/trained_model_quantized.pt", "metrics/samples.md"):
        assert (built / name).stat().st_size > 0
    assert "Data and pipelines are up to date" in dvc(built, "repro").stdout


def test_the_record_of_the_text_holds_the_recipe_and_each_automatic_value(built):
    params = yaml.safe_load((built / "params.yaml").read_text("utf-8"))
    record = json.loads((built / "metrics" / "corpus.json").read_text("utf-8"))
    # Their own word.
    own = {
        "corpus.text",
        "corpus.prompt",
        "corpus.completion",
        "train.precision",
        "train.compile",
        "runtime.device",
        "quantize.scheme",
    }
    said = {
        f"{section}.{key}"
        for section, keys in params.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
        if value == "auto"
    }
    assert record["source"] == "text" and record["recipe"] == params["recipe"] == "quick"
    assert record["auto"].keys() == said - own and "train.lr" in said
    used = Checkpoint.load(built / "models" / "checkpoint.pt").provenance
    tokenizer = used["data"]["tokenizer"]
    assert (tokenizer["name"], tokenizer["pattern"]) == ("bpe", PATTERNS["gpt-2"])
    for place, value in record["auto"].items():
        section, key = place.split(".")
        assert section == "tokenize" or used[section][key] == value


def test_the_pairs_are_the_first_point_and_line_of_a_run(built):
    header, first, second = (built / "metrics" / "loss.tsv").read_text("utf-8").splitlines()[:3]
    start = dict(zip(header.split("\t"), first.split("\t"), strict=True))
    assert (start["step"], start["train_loss"], start["lr"]) == ("0", "nan", "nan")
    assert float(start["val_loss"]) > 0 and int(second.split("\t")[0]) > 0
    assert "  bigrams  val " in (built / "metrics" / "training.log").read_text("utf-8")


def test_metrics_show_lists_the_held_out_loss_of_both_models(built):
    shown = json.loads(dvc(built, "metrics", "show", "--json").stdout)
    figures = shown[""]["data"][str(Path("metrics/evaluate.json"))]["data"]
    quantized, original = (
        figures[name]["held_out"]["bits_per_byte"] for name in ("quantized", "float")
    )
    assert 0 < original < 8
    assert abs(quantized - original) < 0.02 * original


def test_metrics_name_the_models_they_are_of(built):
    files = ("models/checkpoint.pt", "models/trained_model_quantized.pt")
    names = [artifact_id(built / file) for file in files]
    train, quantize, evaluate = (
        json.loads((built / "metrics" / f"{stage}.json").read_text("utf-8"))
        for stage in ("train", "quantize", "evaluate")
    )
    assert train["model"] == names[0]
    assert [quantize["checkpoint"], quantize["model"]] == names
    assert [evaluate[part]["model"] for part in ("float", "quantized")] == names


def test_the_share_of_copied_text_is_a_figure_of_evaluate(built):
    sample = (built / "metrics" / "samples.md").read_text("utf-8").split("## Sample 1\n\n")[1]
    figures = json.loads((built / "metrics" / "evaluate.json").read_text("utf-8"))["memorisation"]
    assert figures["span_bytes"] == 32
    assert 0 < figures["sampled_bytes"] <= len(sample.encode())
    assert 0 <= figures["copied_share"] <= 1
    assert 0 <= figures["held_out_copied_share"] < 0.01, "the small text is drawn at random"


def test_git_sees_no_artifact(built):
    tracked = git(built, "ls-files")
    assert "input.txt" not in tracked and "input.jsonl" not in tracked
    assert ".pt" not in tracked
    assert ".npy" not in tracked
    assert git(built, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"train": {"lr": 0.001}}, {"corpus", "train"}),
        ({"evaluate": {"samples": 0}}, {"corpus", "evaluate"}),
        ({"recipe": "best"}, {"corpus", "tokenize", "train"}),
        ({"runtime": {"threads": 2}}, set()),
    ],
)
def test_a_setting_reruns_only_what_depends_on_it(built, changes, stages):
    before = (built / "params.yaml").read_bytes()
    try:
        set_params(built, changes)
        assert changed_stages(built) == stages
    finally:
        (built / "params.yaml").write_bytes(before)


def test_an_edit_of_the_app_reruns_nothing(built):
    page = built / "app" / "app.py"
    before = page.read_bytes()
    try:
        page.write_bytes(before + b"\n# edited\n")
        assert changed_stages(built) == set()
    finally:
        page.write_bytes(before)


def test_a_bad_setting_stops_before_any_output_is_gone(built):
    before, outputs = (built / "params.yaml").read_bytes(), digests(built)
    try:
        set_params(built, {"train": {"lr": "fast"}})
        done = dvc(built, "repro", check=False)
        assert done.returncode != 0
        assert "train.lr is 'fast'" in done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert digests(built) == outputs
    finally:
        (built / "params.yaml").write_bytes(before)


def test_a_clone_without_its_own_text_refuses_instead_of_training_on_the_sample(built, tmp_path):
    git(tmp_path, "clone", "-q", str(built), "clone")
    done = dvc(tmp_path / "clone", "repro", check=False)
    assert done.returncode != 0
    assert "data/ holds nothing to learn from" in done.stdout + done.stderr
    assert not (tmp_path / "clone" / "data" / "input.txt").exists()


COMPARED = """
import sys
sys.path[:0] = ["app", "."]
from experiments import experiments, metrics, load_experiment
from stages.lm.core import paths
one = next(each for each in experiments()[0] if each.name == "fewer")
(key, values), = one.changed.items()
loaded = load_experiment(one.revision, one.name)
epochs = metrics(one.revision, paths.TRAIN_METRICS)["epochs"]
print(one.name, key, *values, epochs, loaded.tokenizer.vocab_size)
"""
"""What the page's comparison finds of an experiment: its setting, its metrics, its model."""


@pytest.mark.slow
def test_an_experiment_in_a_copy_trains_on_the_text_of_the_workspace(built):
    text = built / "data" / "input.txt"
    before = text.read_bytes()
    try:
        text.write_bytes(before + b"a line that no run has seen yet\n")
        dvc(built, "exp", "run", "--temp", "-n", "fewer", "-S", "train.epochs=1")
        assert text.read_bytes().endswith(b"seen yet\n")
        names = dvc(built, "exp", "list", "--name-only").stdout.split()
        assert "fewer" in names
        shown = json.loads(dvc(built, "exp", "show", "--json").stdout)
        assert str(len(before) + 32) in json.dumps(shown)
        told = python(built, "-c", COMPARED).stdout.split()
        assert told == ["fewer", "train.epochs", "3", "1", "1", "300"]
    finally:
        text.write_bytes(before)


def wait_for_state(folder: Path, process: warm.Process, seconds: float) -> None:
    """Let a trainer run until it has saved something, and a little longer."""
    limit = time.monotonic() + 60
    while not list((folder / "models" / "resume").glob("*/state.pt")):
        assert process.poll() is None, "the trainer ended before it saved"
        assert time.monotonic() < limit, "the trainer saved nothing"
        time.sleep(0.01)
    time.sleep(seconds)


SLOW_ENDS = [pytest.param(end, marks=pytest.mark.slow) for end in ("SIGTERM", "SIGHUP")]


@pytest.mark.parametrize("end", ["SIGKILL", "SIGINT", *SLOW_ENDS])
def test_a_stopped_run_continues_to_the_same_bytes(built, tmp_path, end):
    end = signal.Signals[end]
    folder = tmp_path / "project"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns(".git", ".dvc", "resume"))
    for name in OUTPUTS:
        (folder / name).unlink()
    with (tmp_path / "output").open("w+b") as output:
        process = warm.start(folder, "-m", "stages.train", output=output)
        wait_for_state(folder, process, 0.05)
        process.send_signal(end)
        code = process.wait()
        output.seek(0)
        told = output.read().decode("utf-8")
    if end == signal.SIGKILL:
        assert code == -end
    else:
        assert code == 128 + end
        assert "Run the same command again to continue" in told
    again = python(folder, "-m", "stages.train")
    assert "continuing at step" in again.stdout
    assert digests(folder) == digests(built)
    assert "already finished" in python(folder, "-m", "stages.train").stdout


def run_new(folder: Path, *words: str) -> str:
    """What a new interpreter prints for `python WORDS`."""
    environment = os.environ | IDENTITY
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_new_interpreter_knows_the_run_of_a_forked_one(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "project")
    assert "already finished" in run_new(folder, "-m", "stages.train")
    assert digests(folder) == digests(built)


@pytest.mark.slow
def test_new_interpreters_build_the_same_bytes(built, tmp_path):
    folder = new_project(tmp_path / "project")
    run_new(folder, "-m", "dvc", "repro")
    assert digests(folder) == digests(built)
    assert "Data and pipelines are up to date" in run_new(folder, "-m", "dvc", "repro")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has torch imported")
def test_training_survives_kills_nonsense_and_changes():
    """A case or two of each line of the benchmark that needs neither strace nor root."""
    script = str(ROOT / "tests" / "benchmarks" / "crash.py")
    lines = "after a step|at an instant|NaN|changed"
    done = python(ROOT, script, "--every", "100", "--kills", "2", "--only", lines)
    assert done.stdout.count(" held") == 5, done.stdout


def trainer_of(folder: Path) -> int:
    """The process that trains in a project."""
    return int((folder / "models" / "resume" / "workspace.lock.pid").read_text())


def wait_for_trainer(folder: Path) -> None:
    """Until no process trains in a project; DVC is not the parent of one whose DVC was killed."""
    with FileLock(folder / "models" / "resume" / "workspace.lock", timeout=120):
        pass


@pytest.mark.skipif(os.name == "nt", reason="processes cannot be halted there")
def test_a_trainer_whose_dvc_was_killed_is_the_only_one_until_it_ends(built, tmp_path):
    folder = tmp_path / "project"
    shutil.copytree(built, folder, ignore=shutil.ignore_patterns("resume"))
    again = ("repro", "--force", "--single-item", "train")
    with Path(os.devnull).open("wb") as nothing:
        process = warm.start(folder, "-m", "dvc", *again, output=nothing)
    wait_for_state(folder, process, 0)
    orphan = trainer_of(folder)
    os.kill(orphan, signal.SIGSTOP)
    process.kill()
    process.wait()
    done = dvc(folder, *again, check=False)
    os.kill(orphan, signal.SIGTERM)
    os.kill(orphan, signal.SIGCONT)
    assert done.returncode != 0
    assert f"another training process (pid {orphan})" in done.stdout + done.stderr
    wait_for_trainer(folder)
    assert "continuing at step" in dvc(folder, *again).stdout
    assert digests(folder) == digests(built)


def clone_that_pulls(original: Path, copy: Path) -> None:
    """A clone with the data in place and a remote of its own that holds what DVC tracks."""
    store = copy.with_name(f"{copy.name}-store")
    git(original.parent, "clone", "-q", str(original), str(copy))
    shutil.copy(original / "data" / "input.txt", copy / "data" / "input.txt")
    for folder in (original, copy):
        dvc(folder, "remote", "add", "--local", "-f", "-d", "store", str(store))
    dvc(original, "push")


def test_a_clone_that_pulls_reruns_nothing(built, tmp_path):
    original, copy = tmp_path / "project", tmp_path / "clone"
    shutil.copytree(built, original)
    clone_that_pulls(original, copy)
    dvc(copy, "pull")
    assert "Data and pipelines are up to date" in dvc(copy, "repro").stdout
    assert digests(copy) == digests(original)
    assert git(copy, "status", "--porcelain") == ""


TEXTS = {
    "empty": (b"", r"input\.txt: empty"),
    "ten bytes": (b"0123456789", "use a longer text"),
    "blank": (b" \n" * 500, "nothing but white space"),
    "one line": (b"word " * 400, None),
    "not UTF-8": (bytes(range(128, 256)) * 20, None),
    "NULs": (b"ab\0" * 400, None),
    "BOM and CRLF": (b"\xef\xbb\xbf" + b"some words\r\n" * 100, None),
    "emoji and Chinese": ("你好世界 🙂 ".encode() * 100, None),
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_works_or_is_refused_in_a_sentence(name, workspace):
    from stages import corpus, tokenize_text
    from stages.lm.core import paths
    from stages.lm.core.errors import UserError
    from stages.lm.data.dataset import TokenData

    text, refusal = TEXTS[name]
    place = workspace / "data" / "input" / "input.txt"
    place.write_bytes(text)
    if refusal:
        with pytest.raises(UserError, match=refusal):
            corpus.main()
    else:
        corpus.main()
        tokenize_text.main()
        data = TokenData.load(paths.TOKENS)
        assert sum(split.bytes for split in data.meta.splits.values()) == len(text)
    assert place.read_bytes() == text


def run_commands(folder: Path, store: Path, commands: list[str]) -> int:
    """Run lines of the README; returns how many experiments came of them."""
    before = dvc(folder, "exp", "list", "--name-only").stdout.split()
    for line in commands:
        words = shlex.split(line.replace("/path/or/s3-bucket", str(store)))
        python(folder, *(words[1:] if words[0] == "python" else ["-m", *words]))
        if words[:3] == ["dvc", "queue", "start"]:
            status = wait_for_queue(folder, tasks=2)
            assert "Failed" not in status, status
    return len(dvc(folder, "exp", "list", "--name-only").stdout.split()) - len(before)


@pytest.mark.slow
def test_the_readmes_commands_run(built, tmp_path):
    """All but the queue's, whose experiments train in turn."""
    folder = shutil.copytree(built, tmp_path / "project")
    commands = [line for line in COMMANDS if "queue" not in line]
    assert len(commands) > 10
    assert run_commands(folder, tmp_path / "store", commands) == 1
    assert any((tmp_path / "store").rglob("*"))


@pytest.mark.slow
def test_the_readmes_queue_runs(built, tmp_path):
    folder = shutil.copytree(built, tmp_path / "project")
    commands = [line for line in COMMANDS if "queue" in line]
    assert len(commands) == 2
    assert run_commands(folder, tmp_path / "store", commands) == 2


def wait_for_queue(folder: Path, tasks: int) -> str:
    """Wait until so many tasks have ended; returns the queue's last status.

    Between two tasks DVC shows none as running or queued, so the ended ones are counted.
    """
    limit = time.monotonic() + 240
    while True:
        status = dvc(folder, "queue", "status").stdout
        if status.count("Success") + status.count("Failed") >= tasks:
            return status
        assert time.monotonic() < limit, f"the queued experiments did not end: {status}"
        time.sleep(0.5)
