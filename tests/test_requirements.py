"""The two lists of requirements agree with each other and with what is imported."""

import ast
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
IMPORT_NAMES = {"pyyaml": "yaml", "ruamel-yaml": "ruamel", "protobuf": "google"}


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    parsed = [Requirement(line.split("#")[0]) for line in lines if line.split("#")[0].strip()]
    return {canonicalize_name(each.name): each for each in parsed}


PINS = requirements((ROOT / "requirements.txt").read_text("utf-8").splitlines())
RUN = requirements(PROJECT["project"]["dependencies"])
EXTRAS = requirements(PROJECT["project"]["optional-dependencies"]["pdf"])
GROUPS = {name: requirements(group) for name, group in PROJECT["dependency-groups"].items()}


def test_every_requirement_has_one_pin_within_its_range():
    ranges = RUN | EXTRAS | GROUPS["test"] | GROUPS["check"]
    assert PINS.keys() == ranges.keys()
    for name, pin in PINS.items():
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and not pin.url, pin
        assert ranges[name].specifier.contains(specifier.version), pin


def third_party_imports(folder: Path, *patterns: str) -> set[str]:
    """The top-level modules that the files of a folder import, without the project's own."""
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    used = set()
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                used.add(node.module.split(".")[0])
    own = {"app", "stages"} | {file.stem for file in [*files, *folder.glob("benchmarks/*.py")]}
    return used - own - set(sys.stdlib_module_names)


def import_names(required: Iterable[str]) -> set[str]:
    return {IMPORT_NAMES.get(name, name).replace("-", "_") for name in required}


def test_what_the_stages_and_the_page_import_is_a_requirement():
    used = third_party_imports(ROOT, "stages/**/*.py", "app/*.py")
    # An export is compared with transformers where they are installed.
    assert used <= import_names(RUN | EXTRAS) | {"transformers"}


def test_what_the_tests_import_is_a_requirement():
    used = third_party_imports(ROOT / "tests", "*.py")
    # pytest brings `packaging`, tiktoken `tiktoken_ext`; a test of S3 is skipped without `boto3`.
    assert used <= import_names(RUN | GROUPS["test"]) | {"packaging", "tiktoken_ext", "boto3"}
