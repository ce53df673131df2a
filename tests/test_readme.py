"""What the README and the other pages show is what there is: commands, files, settings."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line]
PACKAGES = sorted(path.parent.name for path in (ROOT / "stages" / "lm").glob("*/__init__.py"))
PAGES = {
    name: (ROOT / name).read_text("utf-8")
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "stages/README.md",
        "stages/lm/settings/RECIPES.md",
        "tests/benchmarks/README.md",
        "tests/benchmarks/RESULTS.md",
    )
}
SECTIONS = "tokenize|model|train|quantize|evaluate|runtime"


def test_the_readme_stays_an_introduction():
    assert len(README.encode()) <= 12_000


def test_the_set_up_is_the_two_commands_that_ci_runs():
    assert COMMANDS[:2] == ["pip install -r requirements.txt && dvc repro", "pytest"]
    script = (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    assert "pytest" in script
    assert any(line.startswith("pip install") and "requirements.txt" in line for line in script)


def settings_named(text: str) -> set[str]:
    """All `section.key` in code, file names such as `train.json` left out."""
    code = " ".join(re.findall(r"`([^`\n]+)`", text) + re.findall(r"-S (\S+)", text))
    found = re.findall(rf"(?<![\w./])((?:{SECTIONS})\.[a-z_]\w*)", code)
    return {key for key in found if not key.endswith((".json", ".py", ".log", ".npy"))}


@pytest.mark.parametrize(
    ("page", "key"), [(name, key) for name in PAGES for key in sorted(settings_named(PAGES[name]))]
)
def test_a_setting_that_a_page_names_exists(page, key):
    section, name = key.split(".")
    assert name in yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))[section], page


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", "".join(PAGES.values()), re.S))
def test_a_setting_in_a_block_of_settings_exists(block):
    known = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    for section, values in yaml.safe_load(block).items():
        assert values.keys() <= known[section].keys()


@pytest.mark.parametrize(
    ("page", "module"),
    [
        (name, module)
        for name, text in PAGES.items()
        for module in sorted(set(re.findall(r"python -m ((?:app|stages)\.[a-z_.]+)", text)))
    ],
)
def test_a_module_that_a_page_runs_exists(page, module):
    assert importlib.util.find_spec(module) is not None, page


def test_the_trees_show_every_package():
    assert sorted(re.findall(r"^ {4}(\w+)/ ", README, re.M)) == PACKAGES
    table = PAGES["stages/README.md"].partition("| package |")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.M)) == PACKAGES


@pytest.mark.parametrize(
    ("page", "script"),
    [
        (name, script)
        for name, text in PAGES.items()
        for script in sorted(set(re.findall(r"tests/benchmarks/(\w+\.py)", text)))
    ],
)
def test_a_benchmark_that_a_page_names_exists(page, script):
    assert (ROOT / "tests" / "benchmarks" / script).exists(), page


@pytest.mark.parametrize(
    ("page", "target"),
    [
        (name, target)
        for name, text in PAGES.items()
        for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", text)
    ],
)
def test_a_linked_file_exists(page, target):
    assert ((ROOT / page).parent / target).exists()


def test_a_linked_heading_exists():
    for name, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
            path = (ROOT / name).parent / target if target else ROOT / name
            headings = re.findall(r"^#+ (.+)$", path.read_text("utf-8"), re.M)
            slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
            assert anchor in slugs, f"{name}: {target}#{anchor}"
