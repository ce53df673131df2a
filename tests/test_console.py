"""Nobody has to read what a stage prints, and Ctrl-C ends every command in one line."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from test_end_to_end import new_project

ROOT = Path(__file__).parents[1]
ENTRIES = [f"stages.{path.stem}" for path in sorted((ROOT / "stages").glob("[!_]*.py"))]
ENTRIES = [name for name in ENTRIES if name != "stages.sample_text"] + ["app.generate"]
PRINTS = """
import sys
from pathlib import Path
from tqdm import tqdm
from stages.lm.core.console import begin_command
from stages.lm.core.errors import UserError
from stages.lm.core.stage import run_stage

begin_command()

def main():
    for _ in tqdm(range(3)):
        print("x" * 100_000)
        print("y", file=sys.stderr, flush=True)
    with Path(sys.argv[1]).open("w") as file:
        assert file.fileno() > 2
        file.write("done")
    if len(sys.argv) > 2:
        raise UserError("no text")
    return 5

run_stage(main)
"""


def broken_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


OUTPUTS = {
    "broken": broken_pipe,
    "full": lambda: os.open("/dev/full", os.O_WRONLY),
    "closed": lambda: None,
    "read": lambda: os.open(os.devnull, os.O_WRONLY),
}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="has no /dev/full")


def run(words, output, errors):
    """The exit code of a new interpreter with such outputs."""
    files = [OUTPUTS[output](), OUTPUTS[errors]()]

    def prepare():
        for number, file in enumerate(files, 1):
            os.close(number) if file is None else os.dup2(file, number)

    code = subprocess.run([sys.executable, *words], cwd=ROOT, preexec_fn=prepare).returncode
    for file in files:
        if file is not None:
            os.close(file)
    return code


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("errors", OUTPUTS)
def test_outputs_that_nobody_reads_end_no_work_and_change_no_exit_code(tmp_path, output, errors):
    done = tmp_path / "done"
    assert run(["-c", PRINTS, str(done)], output, errors) == 5
    assert done.read_text() == "done"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_gets_everything_in_order(tmp_path, unbuffered):
    told = subprocess.run(
        [sys.executable, "-c", PRINTS, str(tmp_path / "done"), "error"], cwd=ROOT,
        capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (1, ("x" * 100_000 + "\n") * 3)
    assert told.stderr.count("y\n") == 3 and told.stderr.endswith("\nerror: no text\n")


@pytest.mark.parametrize("name", ENTRIES)
def test_ctrl_c_while_a_command_imports_is_one_line(tmp_path, name):
    for slow in ("torch", "tiktoken", "tokenizers", "yaml"):
        (tmp_path / f"{slow}.py").write_text(
            "import os, time\n"
            "try:\n    os.write(1, b'importing'); time.sleep(60)\n"
            "except BaseException:\n    os.write(1, b'an exception')\n"
        )
    process = subprocess.Popen(
        [sys.executable, "-m", name], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout.read(9) == b"importing"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate()
    assert (process.returncode, output) == (130, b"")
    assert errors == b"stopped; run the same command again to start over\n"


@pytest.mark.slow
def test_every_stage_does_its_work_without_readers(tmp_path):
    project = new_project(tmp_path / "project")
    for name in ("corpus", "tokenize_text", "train", "quantize", "evaluate"):
        with os.fdopen(broken_pipe(), "wb") as pipe, Path("/dev/full").open("wb") as full:
            words = ("-m", f"stages.{name}")
            assert warm.start(project, *words, output=pipe, errors=full).wait() == 0, name
    assert (project / "metrics" / "evaluate.json").exists()
