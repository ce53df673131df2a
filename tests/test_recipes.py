"""Every automatic value is one that the settings take, whatever is set beside it."""

from dataclasses import asdict
from itertools import pairwise, product

import pytest
import yaml

from stages.corpus import SECTIONS
from stages.lm.core.errors import UserError
from stages.lm.core.paths import PARAMS
from stages.lm.settings.loader import load_section, load_sections
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.recipes import (
    ADAMW,
    BY_SIZE,
    COMMON,
    FROM_BASE,
    LARGEST_BIGRAMS,
    automatic,
    derive,
)

DOCUMENT = yaml.safe_load(PARAMS.read_text("utf-8"))
SETTINGS = [
    f"{section}.{key}"
    for section, keys in DOCUMENT.items()
    if isinstance(keys, dict)
    for key in keys
]
AUTOMATIC = sorted(derive("quick", 0, {}))
SIZES = [200, 50_000, 300_000, 1_000_000, 5_000_000, 100_000_000]
SET = {
    "tokenize.tokenizer": "gpt2",
    "tokenize.pattern": "qwen2",
    "model.arch": "gpt2",
    "model.tie_embeddings": True,
    "tokenize.vocab_size": 700,
    "model.layers": 7,
    "model.heads": 1,
    "model.kv_heads": 1,
    "model.width": 72,
    "model.ff_width": 88,
    "model.context": 24,
    "model.dropout": 0.375,
    "model.init": "random",
    "train.epochs": 13,
    "train.batch_size": 5,
    "train.accumulate": 3,
    "train.share_spellings": False,
    "train.ema_decay": 0.4375,
    "train.calibrate": True,
    "train.split_tokens": 0.5625,
    "train.lr": 0.0625,
    "train.embedding_lr": 0.125,
    "train.head_lr": 0.25,
    "train.warmup_steps": 77,
    "train.decay_fraction": 0.375,
    "train.weight_decay": 0.75,
    "train.beta1": 0.5,
    "train.beta2": 0.625,
}
COLUMNS = {"corpus.text", "corpus.prompt", "corpus.completion"}
OWN = COLUMNS | {"quantize.scheme", "train.precision", "train.compile", "runtime.device"}
"""Settings of which `auto` is a word of their own."""


@pytest.fixture
def write(tmp_path):
    """Writes params.yaml with every setting that may be automatic so, but for those given."""
    path = tmp_path / "params.yaml"

    def write(recipe="quick", **given):
        document = yaml.safe_load(PARAMS.read_text("utf-8")) | {"recipe": recipe}
        for setting, value in (dict.fromkeys(AUTOMATIC, "auto") | given).items():
            section, key = setting.split(".")
            document[section][key] = value
        path.write_text(yaml.safe_dump(document), "utf-8")
        return path

    return write


def load(path, size):
    """Every setting by `section.key`, and what stood for `auto`."""
    auto = automatic(size, path)
    sections = load_sections(SECTIONS, path, auto.values)
    return {
        f"{name}.{key}": value
        for name, section in sections.items()
        for key, value in asdict(section).items()
    }, auto


def refusal(action, *arguments):
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".")
    return message


# The tables ---------------------------------------------------------------------------------------


def test_every_automatic_value_is_of_a_setting_there_is():
    rows = [row for table in BY_SIZE.values() for _, row in table]
    named = {key for row in [COMMON, ADAMW, *rows] for key in row}
    assert named <= set(AUTOMATIC) <= set(SETTINGS)


@pytest.mark.parametrize("recipe", BY_SIZE)
def test_a_recipe_begins_at_nothing_and_its_rows_rise_and_set_the_same(recipe):
    starts = [start for start, _ in BY_SIZE[recipe]]
    assert starts[0] == 0 and starts == sorted(set(starts))
    assert {frozenset(derive(recipe, start, {})) for start in starts} == {frozenset(AUTOMATIC)}


def test_the_shipped_file_names_a_recipe_and_every_automatic_setting_in_it_has_a_value():
    auto = automatic(1_000_000)
    said = set()
    for setting in SETTINGS:
        section, key = setting.split(".")
        if DOCUMENT[section][key] == "auto":
            said.add(setting)
    assert auto.recipe == DOCUMENT["recipe"] in BY_SIZE
    assert set(auto.used) == said - OWN and not OWN & set(auto.values)


def test_a_recipe_takes_the_last_row_that_the_text_reaches():
    for recipe, table in BY_SIZE.items():
        for start, row in table:
            assert row.items() <= derive(recipe, start, {}).items()
        for (_, row), (start, _) in pairwise(table):
            assert row.items() <= derive(recipe, start - 1, {}).items()


# The values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", BY_SIZE)
@pytest.mark.parametrize("size", SIZES)
def test_all_automatic_loads_beside_every_choice(write, recipe, size):
    for arch, tied, optimizer in product(("qwen3", "gpt2"), (True, False), ("muon", "adamw")):
        path = write(
            recipe,
            **{"model.arch": arch, "model.tie_embeddings": tied, "train.optimizer": optimizer},
        )
        loaded, auto = load(path, size)
        chosen = [key for key in AUTOMATIC if key not in ("model.arch", "model.tie_embeddings")]
        assert sorted(auto.used) == chosen
        assert {key: loaded[key] for key in chosen} == auto.chosen()
        assert (loaded["model.init"] == "looking_back") == (arch == "qwen3" and not tied)
        if optimizer == "adamw":
            assert ADAMW.items() <= loaded.items()


@pytest.mark.parametrize("arch", ["qwen3", "gpt2"])
@pytest.mark.parametrize("width", [8, 96, 100, 130, 192, 320, 384, 510, 16_384, 320.0])
def test_heads_and_inner_size_follow_a_width_that_is_set(write, arch, width):
    loaded, _ = load(write(**{"model.width": width, "model.arch": arch}), 10_000)
    width, heads = int(width), loaded["model.heads"]
    assert loaded["model.width"] == width and width % heads == 0
    assert loaded["model.kv_heads"] == heads <= max(1, width // 64)
    assert loaded["model.ff_width"] == width * {"qwen3": 2, "gpt2": 4}[arch]


def test_heads_of_64_where_the_width_allows(write):
    for width in (64, 128, 320, 384, 1024):
        loaded, _ = load(write(**{"model.width": width}), 10_000)
        assert width / loaded["model.heads"] == 64


def test_key_value_heads_follow_heads_that_are_set(write):
    loaded, _ = load(write(**{"model.width": 96, "model.heads": 6}), 10_000)
    assert (loaded["model.heads"], loaded["model.kv_heads"]) == (6, 6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("width", value) for value in (0, -5, 7, 10**12 + 39, 10**400, True, "wide", [64])],
        *[("heads", value) for value in (0, -1, 2.5, 10**400, True, "four", [4])],
    ],
    ids=lambda value: repr(value)[:12],
)
def test_a_shape_that_cannot_be_is_refused_by_its_own_name(write, key, value):
    path = write(**{f"model.{key}": value})
    assert f"model.{key} is {value!r}" in refusal(load, path, 10_000)


@pytest.mark.parametrize(
    ("given", "init"),
    [
        ({"tokenize.tokenizer": "gpt2"}, "random"),
        ({"tokenize.tokenizer": "own.tiktoken"}, "random"),
        ({"tokenize.vocab_size": LARGEST_BIGRAMS + 1}, "random"),
        ({"tokenize.vocab_size": LARGEST_BIGRAMS}, "looking_back"),
    ],
)
def test_pairs_are_not_counted_where_the_vocabulary_is_large(write, given, init):
    assert load(write(**given), 5_000_000)[0]["model.init"] == init


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_adapters_have_a_learning_rate_of_their_own(optimizer):
    for row, width in enumerate((128, 768)):
        base = {"model.context": 64, "model.width": width}
        given = {"train.optimizer": optimizer}
        full = derive("quick", 300_000, given, base)
        assert FROM_BASE[optimizer][row][1].items() <= full.items()
        lora = derive("quick", 300_000, given | {"train.adapt": "lora"}, base)
        assert lora.items() >= (ADAMW | FROM_BASE["lora"][row][1]).items()


# What is set --------------------------------------------------------------------------------------


def test_values_that_are_set_win_together(write):
    assert sorted(SET) == AUTOMATIC
    loaded, auto = load(write(**SET), 1_000_000)
    assert SET.items() <= loaded.items() and auto.chosen() == {} and not auto.used


@pytest.mark.parametrize("recipe", BY_SIZE)
@pytest.mark.parametrize("key", AUTOMATIC)
def test_a_value_that_is_set_wins_alone(write, recipe, key):
    automatically = load(write(recipe), 1_000_000)[0][key]
    other = not automatically if isinstance(automatically, bool) else SET[key]
    assert automatically != other, "nothing to win against"
    loaded, auto = load(write(recipe, **{key: other}), 1_000_000)
    assert loaded[key] == other and key not in auto.used
    assert auto.chosen().keys() == set(AUTOMATIC) - {key}


def test_a_line_names_key_value_recipe_and_size(write):
    auto = automatic(1_234_567, write("best", **{"model.width": 96}))
    lines = auto.lines("train") + auto.lines("model") + auto.lines("tokenize")
    assert sorted(lines) == sorted(
        f"{key} = {auto.values[key]} (auto: recipe best for 1,234,567 bytes of text)"
        for key in AUTOMATIC
        if key != "model.width"
    )
    assert all(line.startswith("model.") for line in auto.lines("model"))
    assert auto.lines("evaluate") == []


# Refusing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["fast", "", None, 5, ["quick"], {"quick": 1}, "Quick"], ids=repr)
def test_a_recipe_that_is_none_is_one_sentence(write, value):
    message = refusal(automatic, 1000, write(value))
    assert message.startswith(f"params.yaml: recipe is {value!r}, but must be one of quick, best")


def test_adapters_without_weights_to_adapt_are_one_sentence(write):
    message = refusal(automatic, 1000, write(**{"train.adapt": "lora"}))
    assert message.startswith("params.yaml: train.adapt is lora, but init_from is scratch: there")


def test_shared_spellings_on_given_weights_are_one_sentence(write):
    path = write(**{"train.share_spellings": True})
    message = refusal(automatic, 5000, path, {"model.context": 64, "model.width": 128})
    assert "train.share_spellings is true" in message and "auto" in message


def test_a_number_too_long_to_print_is_one_sentence(write):
    path = write()
    text = path.read_text("utf-8")
    path.write_text(text.replace("recipe: quick", "recipe: 0x" + 5_000 * "f"), "utf-8")
    message = refusal(automatic, 1000, path)
    assert message == "params.yaml: recipe is a number of a thousand digits."


def test_a_missing_recipe_is_one_sentence(write):
    path = write()
    document = yaml.safe_load(path.read_text("utf-8"))
    del document["recipe"]
    path.write_text(yaml.safe_dump(document), "utf-8")
    message = refusal(automatic, 1000, path)
    assert "params.yaml: recipe is missing" in message and "quick, best" in message


@pytest.mark.parametrize("setting", sorted(set(SETTINGS) - set(AUTOMATIC)))
def test_auto_where_nothing_is_automatic_is_refused_and_not_offered(write, setting):
    # `auto` is text, which this takes, or a word of theirs.
    if setting in COLUMNS | {"evaluate.prompt", "evaluate.also"}:
        assert load(write(**{setting: "auto"}), 1000)[0][setting] == "auto"
        return
    junk = "junk" if setting in OWN else "auto"
    message = refusal(load, write(**{setting: junk}), 1000)
    assert message.startswith(f"params.yaml: {setting} is {junk!r}, but must be ")
    assert ", or auto" not in message


@pytest.mark.parametrize("setting", AUTOMATIC)
def test_auto_is_offered_where_it_may_stand(write, setting):
    message = refusal(load, write(**{setting: "junk"}), 1000)
    assert message.startswith(f"params.yaml: {setting} is 'junk', but must be ")
    assert message.endswith(", or auto.")


def test_without_a_recipe_at_hand_auto_is_no_value(write):
    message = refusal(load_section, ModelSettings, write())
    assert "model.arch is 'auto'" in message and "or auto" not in message
