"""Every value of params.yaml arrives as it was meant, or is refused in one sentence."""

import ast
import dataclasses
import inspect
import re
from itertools import pairwise

import pytest
import yaml
from dvc.utils.serialize import load_yaml

from stages.corpus import SECTIONS
from stages.lm.core.errors import UserError
from stages.lm.core.paths import PARAMS
from stages.lm.model.config import FAMILIES
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.loader import load_section, load_sections
from stages.lm.settings.model import ARCHES, ModelSettings
from stages.lm.settings.recipes import automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.settings.train import TrainSettings

DOCUMENT = yaml.safe_load(PARAMS.read_text("utf-8"))
AUTO = automatic(1_000_000).values
BY_NAME = pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.SECTION)


def refusal(cls, path):
    with pytest.raises(UserError) as caught:
        load_section(cls, path, AUTO)
    message = str(caught.value)
    assert "\n" not in message and message.endswith((".", "?"))
    return message


def test_params_yaml_has_a_section_for_every_class_and_no_other():
    assert list(DOCUMENT) == ["recipe", "init_from", *(cls.SECTION for cls in SECTIONS)]


@BY_NAME
def test_params_yaml_has_the_fields_of_the_class_in_their_order(section):
    fields = [field.name for field in dataclasses.fields(section)]
    assert list(DOCUMENT[section.SECTION]) == fields


@BY_NAME
def test_every_field_has_a_docstring(section):
    body = ast.parse(inspect.getsource(section)).body[0].body
    fields = {field.name for field in dataclasses.fields(section)}
    documented = {
        node.target.id
        for node, after in pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
    assert documented == fields


@BY_NAME
def test_no_field_has_a_default_that_params_yaml_would_hide(section):
    assert all(
        field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        for field in dataclasses.fields(section)
    )


def test_the_shipped_settings_arrive_with_their_values():
    loaded = load_sections(SECTIONS, auto=AUTO)
    expected = {
        name: {
            key: AUTO.get(f"{name}.{key}", value) if value == "auto" else value
            for key, value in values.items()
        }
        for name, values in DOCUMENT.items()
        if name not in ("recipe", "init_from")
    }
    assert {name: dataclasses.asdict(section) for name, section in loaded.items()} == expected


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (TrainSettings, "epochs", "three"),
        (TrainSettings, "epochs", 2.5),
        (TrainSettings, "epochs", True),
        (TrainSettings, "epochs", 0),
        (TrainSettings, "epochs", 10**400),
        (TrainSettings, "epochs", [3]),
        (TrainSettings, "lr", "fast"),
        (TrainSettings, "lr", False),
        (TrainSettings, "lr", -0.1),
        (TrainSettings, "lr", float("nan")),
        (TrainSettings, "lr", float("inf")),
        (TrainSettings, "lr", "nan"),
        (TrainSettings, "lr", {"peak": 1}),
        (TrainSettings, "precision", "fp8"),
        (TrainSettings, "precision", 16),
        (TrainSettings, "seed", -1),
        (TrainSettings, "optimizer", "sgd"),
        (TrainSettings, "compile", True),
        (ModelSettings, "init", "zero"),
        (ModelSettings, "arch", "mamba"),
        (ModelSettings, "tie_embeddings", 1),
        (ModelSettings, "tie_embeddings", "yes"),
        (EvaluateSettings, "prompt", 5),
        (EvaluateSettings, "top_p", 1.01),
        (RuntimeSettings, "device", "gpu"),
        (TokenizeSettings, "vocab_size", 255),
        (TokenizeSettings, "tokenizer", "gpt9"),
        (EvaluateSettings, "prompt", "\ud800"),
    ],
    ids=lambda part: repr(part)[:20] if not isinstance(part, type) else part.SECTION,
)
def test_a_value_that_cannot_be_names_file_key_and_value(params, cls, key, value):
    _, change = params
    message = refusal(cls, change(cls.SECTION, key, value))
    assert message.startswith(f"params.yaml: {cls.SECTION}.{key} is {value!r}, but must be ")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lr", "1e-05", 1e-5), ("lr", "1e-5", 1e-5), ("lr", "0.00001", 1e-5), ("lr", ".5", 0.5),
        ("lr", "1_0.5e-3", 0.0105), ("lr", "1", 1.0), ("epochs", "4.0", 4), ("epochs", "1e2", 100),
        ("seed", "010", 10), ("seed", "0o17", 15), ("seed", "0x10", 16), ("seed", "1_000", 1000),
        ("calibrate", "True", True),
    ],
)  # fmt: skip
def test_a_setting_means_what_dvc_records(params, key, text, value):
    path, _ = params
    path.write_text(re.sub(rf"\n  {key}: \S+", f"\n  {key}: {text}", path.read_text()))
    used, recorded = getattr(load_section(TrainSettings, path, AUTO), key), load_yaml(path)
    assert used == value == recorded["train"][key]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("seed", "1:30"), ("seed", "'4'"), ("seed", '"1e2"'), ("seed", "0o8"), ("seed", "2024-1-1"),
        ("seed", "٣"), ("seed", "[4]"), ("lr", "'1e-05'"), ("lr", ".5e3"),
        ("lr", "1:30.5"), ("lr", "0x" + "f" * 5000), ("calibrate", "yes"),
        ("calibrate", "on"), ("calibrate", "1"), ("seed", "auto"),
    ],
)  # fmt: skip
def test_what_is_no_number_or_bool_to_dvc_is_refused_with_its_key(params, key, text):
    path, _ = params
    changed = re.sub(rf"\n  {key}: \S+", f"\n  {key}: {text}", path.read_text("utf-8"))
    path.write_text(changed, "utf-8")
    assert f"train.{key}" in refusal(TrainSettings, path)


def test_a_whole_number_is_an_int_and_a_fractional_one_a_float(params):
    _, change = params
    change("train", "epochs", 2.0)
    settings = load_section(TrainSettings, change("train", "lr", 1), AUTO)
    assert type(settings.epochs) is int and type(settings.lr) is float


def test_an_unknown_key_suggests_the_nearest(params):
    _, change = params
    message = refusal(TrainSettings, change("train", "bath_size", 16))
    assert "train.bath_size" in message and "did you mean 'batch_size'" in message


def test_an_unknown_key_that_resembles_none_lists_all(params):
    _, change = params
    message = refusal(TrainSettings, change("train", "zzz", 16))
    assert "train.zzz" in message and "known are seed, epochs" in message


def test_a_missing_key_is_named_with_what_it_may_be(params):
    _, change = params
    message = refusal(TrainSettings, change("train", "epochs", None))
    assert "train.epochs is missing" in message and "a whole number from 1 to 100,000" in message


def test_a_missing_section_is_named(params):
    path, _ = params
    document = {name: section for name, section in DOCUMENT.items() if name != "train"}
    path.write_text(yaml.safe_dump(document), "utf-8")
    assert "the section `train:` is missing" in refusal(TrainSettings, path)


@pytest.mark.parametrize("value", [None, 5, ["lr"]])
def test_a_section_that_is_no_group_of_keys_is_refused(params, value):
    path, _ = params
    path.write_text(yaml.safe_dump(DOCUMENT | {"train": value}), "utf-8")
    assert f"`train:` is {value!r}" in refusal(TrainSettings, path)


def test_an_unknown_section_suggests_the_nearest(params):
    _, change = params
    path = change("trian", "lr", 1)
    with pytest.raises(UserError, match=r"unknown section 'trian'; did you mean 'train'"):
        load_sections(SECTIONS, path, AUTO)


@pytest.mark.parametrize(
    ("cls", "changes", "named"),
    [
        (ModelSettings, {"width": 250, "heads": 4}, ("model.width 250", "model.heads 4")),
        (ModelSettings, {"heads": 4, "kv_heads": 3}, ("model.heads 4", "model.kv_heads 3")),
        (ModelSettings, {"width": 12, "heads": 4}, ("model.width / model.heads is 3", "even")),
        (
            ModelSettings,
            {"arch": "gpt2", "heads": 4, "kv_heads": 2},
            ("model.kv_heads is 2", "to 4"),
        ),
        (
            ModelSettings,
            {"arch": "gpt2", "init": "bigrams"},
            ("model.init is bigrams", "they are gpt2 and false", "to random or auto"),
        ),
        (
            ModelSettings,
            {"tie_embeddings": True, "init": "bigrams"},
            ("model.init is bigrams", "they are qwen3 and true", "to random or auto"),
        ),
        (
            TokenizeSettings,
            {"val_fraction": 0.5, "test_fraction": 0.45},
            ("tokenize.val_fraction 0.5", "tokenize.test_fraction 0.45"),
        ),
    ],
)
def test_keys_that_contradict_each_other_are_both_named(params, cls, changes, named):
    path, change = params
    for key, value in changes.items():
        change(cls.SECTION, key, value)
    message = refusal(cls, path)
    assert message.startswith("params.yaml: ") and all(part in message for part in named)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"train: [", "not readable as YAML"),
        (b"\xff\xfe", "save it in UTF-8"),
        ("ü: 1".encode("utf-16"), "save it in UTF-8"),
        ("ü: 1".encode("latin-1"), "save it in UTF-8"),
        (b"a: 1\x00", "not readable as YAML"),
        (b"train:\n  seed: 1\n  seed: 2\n", 'line 3: found duplicate key "seed"'),
        (b"x" * 10_000_000, "larger or deeper than any settings"),
        (b"", "must hold sections"),
        (b"- train", "must hold sections"),
    ],
)
def test_a_file_that_is_no_yaml_of_sections_is_refused(tmp_path, content, part):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    assert part in refusal(TrainSettings, path)


def test_a_folder_in_its_place_is_a_sentence(tmp_path):
    assert f"{tmp_path.name} could not be read" in refusal(TrainSettings, tmp_path)


def test_a_missing_file_is_named_with_a_remedy(tmp_path):
    message = refusal(TrainSettings, tmp_path / "params.yaml")
    assert "params.yaml is missing" in message and "git checkout" in message


def test_every_family_of_the_model_is_a_setting():
    assert set(ARCHES) == set(FAMILIES)
