"""What is kept in two places agrees: dvc.yaml and the imports, the stages and their settings."""

import ast
import graphlib
import re
from pathlib import Path

import pytest
import yaml

from stages import corpus
from stages.lm.settings.recipes import derive

ROOT = Path(__file__).parents[1]
PIPELINE = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
STAGES = PIPELINE["stages"]
LIBRARY = sorted((ROOT / "stages" / "lm").rglob("[!_]*.py"))
ENTRIES = sorted((ROOT / "stages").glob("[!_]*.py"))
APP = ROOT / "app"
PAGES = sorted(APP.glob("*.py"))


def imported_files(path: Path) -> set[Path]:
    """The project's modules that a file imports directly; those of `app` import each other bare."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            folders = [path.parents[node.level - 1]] if node.level else [ROOT, APP]
            module = (node.module or "").replace(".", "/")
            names = [module, *(f"{module}/{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            folders = [ROOT, APP]
            names = [alias.name.replace(".", "/") for alias in node.names]
        else:
            continue
        found |= {folder / f"{name.strip('/')}.py" for folder in folders for name in names}
    return {file for file in found if file.is_file()}


def closure(path: Path) -> set[Path]:
    seen, todo = set(), {path}
    while todo:
        seen |= todo
        todo = set().union(*(imported_files(file) for file in todo)) - seen
    return seen


def stage_file(stage: dict) -> Path:
    return ROOT / (stage["cmd"].removeprefix("python -m ").replace(".", "/") + ".py")


@pytest.mark.parametrize("name", STAGES)
def test_code_dependencies_are_the_packages_of_the_import_closure(name):
    files = closure(stage_file(STAGES[name]))
    listed = {ROOT / dep for dep in STAGES[name]["deps"] if dep.startswith("stages/")}
    folders = {path for path in listed if path.is_dir()}
    assert folders == {file.parent for file in files if file.parent in folders}
    assert listed - folders == {file for file in files if file.parent not in folders}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT / "stages" / "lm").parts[0]


def test_packages_of_the_library_import_each_other_without_cycles():
    imports: dict[str, set[str]] = {}
    for path in LIBRARY:
        others = {package_of(file) for file in imported_files(path)} - {package_of(path)}
        imports.setdefault(package_of(path), set()).update(others)
    order = tuple(graphlib.TopologicalSorter(imports).static_order())  # raises on a cycle
    assert order[0] == "core"


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_sections_it_reads(name):
    files = {file.stem for file in closure(stage_file(STAGES[name])) if "settings" in file.parts}
    sections = {key for key in STAGES[name]["params"] if "." not in key}
    assert sections - {"recipe"} == files - {"loader", "recipes", "contradictions", "runtime"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_lists_the_recipe_if_it_reads_a_section_with_values_of_it(name):
    sections = {key.split(".")[0] for key in derive("quick", 0, {})}
    listed = set(STAGES[name]["params"])
    assert ("recipe" in listed) == bool(listed & sections)
    reads_it = ROOT / "stages/lm/settings/recipes.py" in closure(stage_file(STAGES[name]))
    assert ("recipe" in listed) == reads_it


def test_runtime_settings_rerun_nothing():
    assert all("runtime" not in stage["params"] for stage in STAGES.values())


def test_corpus_checks_every_section_of_params():
    sections = {cls.SECTION for cls in corpus.SECTIONS}
    document = yaml.safe_load((ROOT / "params.yaml").read_text("utf-8"))
    assert sections | {"recipe", "init_from"} == set(document)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
def test_the_library_imports_no_stage_and_no_app(path):
    assert all("lm" in file.parts for file in imported_files(path))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_app_imports_the_library_and_no_stage(path):
    assert all("lm" in file.parts or file.parent == APP for file in imported_files(path))


@pytest.mark.parametrize("path", ENTRIES, ids=lambda path: path.stem)
def test_stages_do_not_import_each_other(path):
    others = imported_files(path) - {ROOT / "stages" / "sample_text.py"}
    assert all("lm" in file.parts for file in others)


def test_training_does_not_depend_on_decoding_tokenizing_or_quantizing():
    packages = {file.parent.name for file in closure(ROOT / "stages" / "train.py")}
    assert not packages & {"inference", "text", "quantization", "evaluation", "export"}


def test_commands_are_constant_text():
    assert all(re.fullmatch(r"python -m stages\.\w+", stage["cmd"]) for stage in STAGES.values())
