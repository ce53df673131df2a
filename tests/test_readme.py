"""What the README shows is what there is: commands, files, settings."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]


def test_the_set_up_is_the_two_commands_that_ci_runs():
    assert COMMANDS[:2] == ["pip install -r requirements.txt && dvc repro", "pytest"]
    script = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert "pytest" in script
    assert any(line.startswith("pip install") and "requirements.txt" in line for line in script)


@pytest.mark.parametrize("key", sorted(set(re.findall(r"\b(\w+\.\w+)=", README))))
def test_a_setting_in_the_readme_exists(key):
    section, name = key.split(".")
    assert name in yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))[section]


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:app|stages)[.\w]+)", README)))
)
def test_a_module_in_the_readme_exists(module):
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("name", re.findall(r"^ {4}(\w+\.py|\w+/) ", README, re.M))
def test_a_library_file_in_the_tree_exists(name):
    assert (ROOT / "stages" / "lm" / name).exists()


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)]+)\)", README))
def test_a_linked_file_exists(target):
    assert (ROOT / target).exists()


def test_nothing_is_left_to_fill_in():
    assert "@@" not in README
