"""Files lie in the copy of the project that runs; unfinished runs outlive an experiment's copy."""

from pathlib import Path

import pytest

from stages.lm.core import paths


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace, and a function that pretends the code runs in a folder of it."""
    (tmp_path / ".dvc" / "tmp" / "exps" / "temp1").mkdir(parents=True)

    def running_in(folder):
        monkeypatch.setattr(paths, "ROOT", tmp_path / folder)
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        return tmp_path

    return running_in


def test_the_root_holds_the_settings():
    assert Path(__file__).parents[1] / "params.yaml" == paths.PARAMS
    assert paths.PARAMS.exists()


def test_an_experiments_copy_knows_its_workspace_and_keeps_runs_there(workspace):
    root = workspace(".dvc/tmp/exps/temp1")
    assert paths.experiment_origin() == root
    assert paths.resume_folder() == root / ".dvc" / "tmp" / "resume"


def test_a_link_to_the_workspace_is_the_workspace(workspace, tmp_path, monkeypatch):
    root = workspace(".dvc/tmp/exps/temp1")
    link = root / "link"
    link.symlink_to(root, target_is_directory=True)
    monkeypatch.setenv("DVC_ROOT", str(link))
    assert paths.experiment_origin() == link


@pytest.mark.parametrize("folder", [".", "elsewhere", ".dvc/tmp"])
def test_the_workspace_itself_is_no_copy(workspace, folder):
    root = workspace(folder)
    assert paths.experiment_origin() is None
    assert paths.resume_folder() == root / folder / "models" / "resume"


def test_without_dvc_there_is_no_copy(monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert paths.experiment_origin() is None


def test_a_dvc_root_that_is_not_there_is_no_workspace(monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "gone"))
    assert paths.experiment_origin() is None


def test_paths_are_shown_as_a_user_types_them(tmp_path):
    assert paths.shown(paths.CHECKPOINT) == str(Path("models") / "checkpoint.pt")
    assert paths.shown(tmp_path) == str(tmp_path)
