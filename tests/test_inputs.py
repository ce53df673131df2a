"""What changes while a stage runs is never recorded as what its outputs were made from."""

import json
import os
import py_compile
import shutil
import time
from pathlib import Path

import pytest
import warm
import yaml
from test_end_to_end import changed_stages, dvc, new_project, set_params

from stages.lm.core import own_code
from stages.lm.core.errors import UserError
from stages.lm.core.inputs import FileVersions

CHANGES = {
    "rewritten": lambda path: path.write_bytes(b"other"),
    "rewritten with the same bytes": lambda path: path.write_bytes(path.read_bytes()),
    "longer": lambda path: path.open("ab").write(b"x"),
    "cut": lambda path: os.truncate(path, 1),
    "emptied": lambda path: os.truncate(path, 0),
    "touched": os.utime,
    "removed": os.remove,
    "replaced": lambda path: path.with_name("new").rename(path),
    "linked": lambda path: (path.unlink(), path.symlink_to("new")),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("watched", ["data/input.txt", "data"])
def test_a_file_that_changes_is_noticed(tmp_path, change, watched):
    path = tmp_path / "data" / "input.txt"
    path.parent.mkdir()
    path.write_bytes(b"a text")
    shutil.copy2(path, path.with_name("new"))
    versions = FileVersions([tmp_path / watched])
    versions.check()
    time.sleep(0.01)  # a file system's clock may tick in hundredths of a second
    change(path)
    with pytest.raises(UserError, match=r"input\.txt was written, replaced or removed|new was"):
        versions.check()


def test_a_file_that_appears_is_noticed_and_one_that_is_read_is_not(tmp_path):
    (tmp_path / "old").write_bytes(b"a text")
    versions = FileVersions([tmp_path, tmp_path / "later"])
    (tmp_path / "old").read_bytes()
    versions.check()
    (tmp_path / "later").write_bytes(b"")
    with pytest.raises(UserError, match="later was written"):
        versions.check()


EDITS = """
import json
from pathlib import Path
from stages.lm.core import own_code
from stages.lm.core.errors import UserError
from stages.lm.core.inputs import StageInputs
from stages.lm.core.paths import ROOT

found = {}
for command, files in json.loads(Path("asked.json").read_text()).items():
    for name in files:
        inputs, path = StageInputs(command), ROOT / name
        before = path.read_bytes() if path.exists() else None
        inputs.check()
        text = before or b""
        for old, new in {"0.05": "0.06", ": auto": ": 1", "context: 4": "context: 5"}.items():
            text = text.replace(old.encode(), new.encode())
        path.write_bytes(text + b"\\n# edited")
        try:
            inputs.check()
        except UserError as error:
            found[f"{command} {name}"] = str(error)
        path.unlink() if before is None else path.write_bytes(before)
Path("found.json").write_text(json.dumps(found))
"""


def test_every_stage_notices_an_edit_of_its_settings_and_of_each_of_its_packages(tmp_path):
    folder = new_project(tmp_path / "project")
    stages = yaml.safe_load((folder / "dvc.yaml").read_text("utf-8"))["stages"].values()
    asked = {}
    for stage in stages:
        code = [dep for dep in stage["deps"] if dep.startswith("stages/")]
        edited = [dep if dep.endswith(".py") else f"{dep}/__init__.py" for dep in code]
        new = [f"{dep}/new.py" for dep in code if not dep.endswith(".py")]
        asked[stage["cmd"]] = [*edited, *new, "params.yaml"]
    (folder / "asked.json").write_text(json.dumps(asked), "utf-8")
    done = warm.python(folder, "-c", EDITS)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "found.json").read_text("utf-8"))
    assert set(found) == {f"{cmd} {name}" for cmd, files in asked.items() for name in files}
    assert all(name.split()[-1] in message for name, message in found.items())


def test_a_setting_edited_while_training_runs_is_not_recorded(tmp_path):
    folder = new_project(tmp_path / "project")
    set_params(folder, {"train": {"epochs": 5}})
    with (folder / "output").open("wb") as output:
        process = warm.start(folder, "-m", "dvc", "repro", "train", output=output)
        while not (folder / "models" / "resume" / "progress.json").exists():
            assert process.poll() is None, (folder / "output").read_text("utf-8")
            time.sleep(0.02)
        set_params(folder, {"train": {"epochs": 2}})
        assert process.wait() != 0
    said = (folder / "output").read_text("utf-8")
    assert "train.epochs in params.yaml was changed from 5 to 2 while this stage ran" in said
    assert "train" in changed_stages(folder)
    set_params(folder, {"train": {"epochs": 5}})  # the finished run is still there
    assert "already finished" in dvc(folder, "repro", "train").stdout
    assert "train" not in changed_stages(folder)


@pytest.mark.parametrize("size", [0, 10, 16, 17, 40, -1, None])
def test_compiled_code_that_a_full_disk_cut_is_removed(tmp_path: Path, size: int | None) -> None:
    source = tmp_path / "code.py"
    source.write_text("def one():\n    return 'a text of some length'\n", "utf-8")
    compiled = Path(py_compile.compile(str(source), doraise=True) or "")
    foreign = compiled.with_name("code.other-1.pyc")
    foreign.write_bytes(b"cut")
    compiled.write_bytes(compiled.read_bytes()[:size])
    own_code.remove_cut_bytecode(tmp_path)
    assert compiled.exists() == (size is None)
    assert foreign.exists(), "another Python's"
