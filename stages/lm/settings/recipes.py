"""What `auto` stands for: the values of each recipe, by the size of the training text.

A recipe is nothing but values for settings. The README, "Recipes", tells which were measured; the
rest are estimates between and beyond. A value set in `params.yaml` always wins.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import PARAMS
from .loader import NO_AUTO, convert, quoted, read_params

COMMON: dict[str, Any] = {
    "tokenize.tokenizer": "bpe",
    "tokenize.pattern": "gpt-2",
    "model.arch": "qwen3",
    "model.tie_embeddings": False,
    "model.layers": 4,
    "model.width": 256,
    "model.context": 128,
    "model.dropout": 0.0,
    "model.init": "bigrams",
    "train.batch_size": 16,
    "train.accumulate": 2,
    "train.lr": 0.02,
    "train.embedding_lr": 0.03,
    "train.head_lr": 0.006,
    "train.warmup_steps": 10,
    "train.decay_fraction": 0.6,
    "train.weight_decay": 0.0,
    "train.beta1": 0.8,
    "train.beta2": 0.95,
    "train.ema_decay": 0.0,
    "train.calibrate": False,
    "train.split_tokens": 0.0,
}
"""Of every recipe, unless it says otherwise. Two batches of 16 windows take half the memory of one
of 32, which matters to the processor's caches too."""
ADAMW: dict[str, Any] = {"train.lr": 0.003, "train.beta1": 0.9, "train.beta2": 0.95}
"""Instead, where `train.optimizer` is `adamw`, or `train.adapt` is `lora`."""
FROM_BASE: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "muon": [
        (0, {"train.lr": 0.01, "train.embedding_lr": 0.015, "train.head_lr": 0.003}),
        (512, {"train.lr": 0.002, "train.embedding_lr": 0.0003, "train.head_lr": 0.0003}),
    ],
    "adamw": [(0, {"train.lr": 0.0015}), (512, {"train.lr": 0.0001})],
    "lora": [(0, {"train.lr": 0.007}), (512, {"train.lr": 0.0003})],
}
"""Instead, by `train.optimizer` (or for `train.adapt: lora`) and from a width on, where `init_from`
names weights: steps that do not undo them. Half of the rates above served small models (README);
those of wide ones are usual and not tried."""
FEW_PASSES: dict[str, Any] = {
    "model.dropout": 0.0,
    "train.split_tokens": 0.0,
    "train.calibrate": False,
}
"""With such weights too: within few passes, means against learning by heart cost more than they
keep."""
AT_MOST_FROM_BASE = {"train.epochs": 4, "model.context": 1024}
"""With such weights, at most."""

SLOW: dict[str, Any] = {
    "model.context": 256,
    "model.dropout": 0.2,
    "train.batch_size": 8,
    "train.weight_decay": 0.3,
    "train.ema_decay": 0.98,
    "train.calibrate": True,
    "train.split_tokens": 0.15,
}
"""Of `best`, and of short texts: many passes need every means against learning by heart."""
MIDDLE: dict[str, Any] = SLOW | {
    "model.context": 512,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.ema_decay": 0.99,
    "train.split_tokens": 0.2,
}
"""Of `best` for about a megabyte: as many tokens in a step, each with more before it."""
FIVE_PASSES: dict[str, Any] = {"model.dropout": 0.1, "train.calibrate": True, "train.epochs": 5}
SHORT: dict[str, Any] = SLOW | {
    "model.dropout": 0.3,
    "tokenize.vocab_size": 256,
    "model.width": 128,
    "train.batch_size": 4,
    "train.accumulate": 1,
    "train.embedding_lr": 0.01,
    "train.head_lr": 0.003,
}

BY_SIZE: dict[str, list[tuple[int, dict[str, Any]]]] = {
    "quick": [
        (0, SHORT | {"train.epochs": 16}),
        (200_000, FIVE_PASSES | {"tokenize.vocab_size": 512}),
        (700_000, {"tokenize.vocab_size": 1024, "train.epochs": 2}),
        (1_500_000, {"tokenize.vocab_size": 1024, "train.epochs": 1}),
        (4_000_000, {"tokenize.vocab_size": 4096, "train.epochs": 1}),
    ],
    "best": [
        (0, SHORT | {"model.width": 192, "model.dropout": 0.4, "train.epochs": 24}),
        (200_000, SLOW | {"tokenize.vocab_size": 512, "model.dropout": 0.3, "train.epochs": 14}),
        (700_000, MIDDLE | {"tokenize.vocab_size": 1024, "train.epochs": 16}),
        (2_000_000, SLOW | {"tokenize.vocab_size": 2048, "train.epochs": 8, "model.dropout": 0.1}),
        (6_000_000, SLOW | {"tokenize.vocab_size": 4096, "train.epochs": 2, "model.dropout": 0.0}),
        (20_000_000, SLOW | {"tokenize.vocab_size": 4096, "train.epochs": 1, "model.dropout": 0.0}),
    ],
}
"""`quick`: the best model within a minute or two of training up to 2 MB of text, and one pass over
it beyond. `best`: the best model within fifteen to twenty minutes. From so many bytes of text on,
these values."""
FF_RATIO = {"quick": 2, "best": 3}
"""Inner size of qwen3's feed-forward layers, in widths: more of it repays only many passes."""
LARGEST_BIGRAMS = 8192
"""Larger vocabularies start from random weights: bigrams are counted in a square table."""


@dataclass(frozen=True)
class Automatic:
    """What `auto` stands for in `params.yaml`, for a text of a certain size."""

    recipe: str
    text_bytes: int
    values: dict[str, Any]
    """By `section.key`, for every setting that may be `auto`."""
    used: list[str]
    """The settings that are."""
    base: Mapping[str, Any]
    """Those of `values` that are as the weights of `init_from` have them."""

    def chosen(self) -> dict[str, Any]:
        """The settings that are `auto` and their values."""
        return {key: self.values[key] for key in self.used}

    def lines(self, section: str) -> list[str]:
        """What a section's automatic settings are, a line each."""
        recipe = f"recipe {self.recipe} for {self.text_bytes:,} bytes of text"
        return [
            f"{key} = {self.values[key]} (auto: {'init_from' if key in self.base else recipe})"
            for key in self.used
            if key.startswith(section + ".")
        ]


def automatic(text_bytes: int, path: Path = PARAMS, base: Mapping[str, Any] = NO_AUTO) -> Automatic:
    """The values of the recipe that `params.yaml` names, for a text of `text_bytes`.

    `base` holds what the weights of `init_from` fix, by `section.key`; its `model.context` is the
    longest they can have.

    Raises:
        UserError: there is no such recipe, or a setting contradicts the weights to start from.
    """
    document = read_params(path)
    recipe = document.get("recipe")
    if not isinstance(recipe, str) or recipe not in BY_SIZE:
        state = f"is {quoted(recipe)}" if "recipe" in document else "is missing"
        raise UserError(f"{path.name}: recipe {state}, but must be one of {', '.join(BY_SIZE)}.")
    given = {
        f"{section}.{key}": value
        for section, keys in document.items()
        if isinstance(keys, dict)
        for key, value in keys.items()
    }
    refuse_contradictions(given, base, path.name)
    values = derive(recipe, text_bytes, given, base)
    used = [key for key in values if given.get(key) == "auto"]
    return Automatic(recipe, text_bytes, values, used, base)


def refuse_contradictions(given: dict[str, Any], base: Mapping[str, Any], file: str) -> None:
    """Hold the settings `given` against what the weights to start from are.

    Raises:
        UserError: one is another than theirs.
    """
    if not base:
        for key in ("tokenize.tokenizer", "model.init"):
            if given.get(key) == "base":
                raise UserError(
                    f"{file}: {key} is base, but init_from is scratch, which has none; set {key} "
                    "to auto, or init_from to the weights to start from."
                )
        if given.get("train.adapt") == "lora":
            raise UserError(
                f"{file}: train.adapt is lora, but init_from is scratch: there is nothing to "
                "adapt. Set train.adapt to full, or init_from to the weights to start from."
            )
    for key, theirs in base.items():
        value = given.get(key, "auto")
        try:
            same = convert(value, type(theirs)) == theirs
            shorter = key == "model.context" and convert(value, int) < theirs
        except (ValueError, OverflowError):
            continue  # auto, or refused by its own setting
        if value != "auto" and not same and not shorter:
            limit = " at most" if key == "model.context" else ""
            raise UserError(
                f"{file}: {key} is {quoted(value)}, but the weights that init_from names have "
                f"{quoted(theirs)}{limit}; set {key} to auto, or init_from to scratch."
            )


def derive(
    recipe: str, text_bytes: int, given: dict[str, Any], base: Mapping[str, Any] = NO_AUTO
) -> dict[str, Any]:
    """The recipe's values; some follow the values `given` in `params.yaml`, or those of `base`."""
    values = COMMON | [row for start, row in BY_SIZE[recipe] if start <= text_bytes][-1]
    said = {key: value for key, value in given.items() if value != "auto"}
    width = _whole(given.get("model.width")) or values["model.width"]
    heads = _whole(given.get("model.heads"))
    if heads is None:
        # Of an even size each, which rotary positions need.
        counts = range(min(256, max(1, width // 64)), 0, -1)
        heads = next((count for count in counts if width % (2 * count) == 0), 1)
    gpt2, adamw = said.get("model.arch") == "gpt2", said.get("train.optimizer") == "adamw"
    lora = said.get("train.adapt") == "lora"
    values |= {"model.heads": heads, "model.kv_heads": heads}
    values["model.ff_width"] = (4 if gpt2 else FF_RATIO[recipe]) * width
    vocabulary = _whole(given.get("tokenize.vocab_size")) or values["tokenize.vocab_size"]
    large = said.get("tokenize.tokenizer", "bpe") != "bpe" or vocabulary > LARGEST_BIGRAMS
    if gpt2 or large or said.get("model.tie_embeddings") is True:
        values["model.init"] = "random"
    if adamw or lora:
        values |= ADAMW
    if base:
        rows = FROM_BASE["lora" if lora else "adamw" if adamw else "muon"]
        values |= [row for start, row in rows if start <= base.get("model.width", 0)][-1]
        values |= FEW_PASSES | dict(base)
        values |= {key: min(values[key], most) for key, most in AT_MOST_FROM_BASE.items()}
    return values


def _whole(value: Any) -> int | None:
    try:
        return int(convert(value, int))
    except (ValueError, OverflowError):
        return None
