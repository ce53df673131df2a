"""Each clone runs its own code, whatever other clone the environment holds."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = """
import sys
from streamlit.testing.v1 import AppTest
page = AppTest.from_file(sys.argv[1], default_timeout=60).run()
assert not page.exception, page.exception
assert page.title[0].value == "Write with your model"
print(sys.modules["stages"].__file__)
"""
TERMINAL = "import importlib.util; print(importlib.util.find_spec('app.generate').origin)"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of an environment that holds another clone, of which every import fails."""
    other = tmp_path / "other clone"
    for name in ("stages/__init__.py", "app/generate.py"):
        (other / name).parent.mkdir(parents=True)
        (other / name).write_text("raise ImportError('the code of another clone')\n")
    # An editable install appends the clone's folder to sys.path; this puts it further in front.
    return os.environ | {"PYTHONPATH": str(other)}


def test_the_page_imports_its_own_code_from_any_folder(
    environment: dict[str, str], tmp_path: Path
) -> None:
    # -P: like the command `streamlit`, without the working directory on sys.path.
    command = [sys.executable, "-P", "-c", PAGE, str(ROOT / "app" / "app.py")]
    told = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    assert told.returncode == 0
    assert Path(told.stdout.splitlines()[-1]) == ROOT / "stages" / "__init__.py"


def test_a_stage_is_that_of_the_folder_it_is_run_in(
    environment: dict[str, str], tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "stages", clone / "stages")
    shutil.copy(ROOT / "params.yaml", clone)
    (clone / "data").mkdir()
    (clone / "data" / "input.txt").write_text("a text that is long enough " * 20, "utf-8")
    (clone / "metrics").mkdir()
    command = [sys.executable, "-m", "stages.corpus"]
    subprocess.run(command, cwd=clone, env=environment, check=True)
    assert (clone / "metrics" / "corpus.json").exists()


def test_the_terminal_is_that_of_the_folder_it_is_run_in(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", TERMINAL]
    told = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert Path(told.stdout.strip()) == ROOT / "app" / "generate.py"


def test_code_of_another_clone_that_is_imported_already_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = ModuleType("stages")
    other.__file__ = "/other clone/stages/__init__.py"
    monkeypatch.setitem(sys.modules, "stages", other)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(ImportError, match="another clone, /other clone/stages"):
        runpy.run_path(str(ROOT / "app" / "this_clone.py"))


def test_the_page_run_as_a_program_says_how_it_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "app"))
    with pytest.raises(SystemExit, match=r"start it with `streamlit run app/app.py`"):
        runpy.run_path(str(ROOT / "app" / "app.py"))


@pytest.mark.parametrize(
    "module",
    ["app.generate", *(f"stages.{path.stem}" for path in ROOT.glob("stages/[!_s]*.py"))],
)
def test_a_script_run_as_a_file_says_how_to_start_it(
    environment: dict[str, str], module: str
) -> None:
    command = [sys.executable, str(ROOT / (module.replace(".", "/") + ".py"))]
    told = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert told.returncode == 1
    assert told.stderr == f"error: start it in the project's folder, as `python -m {module}`\n"
