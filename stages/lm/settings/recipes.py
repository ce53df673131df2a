"""What `auto` stands for in `params.yaml`: the values of each recipe, by the size of the text.

A recipe is nothing but values for settings, and a value in `params.yaml` always wins. A row of a
table applies from its first number on, up to the next row; it replaces values of `COMMON`.
`RECIPES.md` tells which rows were measured; the others are estimates between and beyond those.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.paths import PARAMS
from ..data.lengths import Lengths
from .contradictions import refuse_contradictions
from .loader import EMPTY, convert, quoted, read_params

Values = dict[str, Any]
"""Settings by `section.key`."""

COMMON: Values = {
    "tokenize.tokenizer": "bpe",
    "tokenize.pattern": "gpt-2",
    "model.arch": "qwen3",
    "model.tie_embeddings": False,
    "model.layers": 4,
    "model.width": 256,
    "model.context": 128,
    "model.dropout": 0.0,
    "model.init": "looking_back",
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
    "train.share_spellings": True,
    "train.ema_decay": 0.0,
    "train.calibrate": True,
    "train.split_tokens": 0.0,
}
"""Values that every recipe begins with. Two passes of 16 windows need half the memory of one of 32,
and more of it fits the processor's caches."""

# Rows of `quick` and `best` --------------------------------------------------------------------

REGULARIZED: Values = {
    "model.context": 256,
    "model.dropout": 0.2,
    "train.batch_size": 8,
    "train.weight_decay": 0.3,
    "train.ema_decay": 0.98,
    "train.split_tokens": 0.15,
}
"""For many passes over a text, which would otherwise overfit."""
LONG_CONTEXT: Values = REGULARIZED | {
    "model.context": 512,
    "model.dropout": 0.1,
    "train.batch_size": 4,
    "train.ema_decay": 0.99,
    "train.split_tokens": 0.2,
}
"""As many tokens in a step as `REGULARIZED`, in windows twice as long."""
SMALL: Values = REGULARIZED | {
    "tokenize.vocab_size": 256,
    "model.width": 128,
    "model.dropout": 0.3,
    "train.batch_size": 4,
    "train.accumulate": 1,
    "train.embedding_lr": 0.01,
    "train.head_lr": 0.003,
}
"""For texts below 200 kB: bytes as tokens, a narrow model, small steps."""

BY_SIZE: dict[str, list[tuple[int, Values]]] = {
    "quick": [
        (0, SMALL | {"train.epochs": 16}),
        (
            200_000,
            {
                "tokenize.vocab_size": 512,
                "model.dropout": 0.1,
                "train.epochs": 5,
            },
        ),
        (700_000, {"tokenize.vocab_size": 1024, "train.epochs": 2}),
        (1_500_000, {"tokenize.vocab_size": 1024, "train.epochs": 1}),
        (4_000_000, {"tokenize.vocab_size": 4096, "train.epochs": 1}),
    ],
    "best": [
        (0, SMALL | {"model.width": 192, "model.dropout": 0.4, "train.epochs": 24}),
        (
            200_000,
            REGULARIZED | {"tokenize.vocab_size": 512, "model.dropout": 0.3, "train.epochs": 14},
        ),
        (700_000, LONG_CONTEXT | {"tokenize.vocab_size": 1024, "train.epochs": 16}),
        (
            2_000_000,
            REGULARIZED | {"tokenize.vocab_size": 2048, "model.dropout": 0.1, "train.epochs": 8},
        ),
        (
            6_000_000,
            REGULARIZED | {"tokenize.vocab_size": 4096, "model.dropout": 0.0, "train.epochs": 2},
        ),
        (
            20_000_000,
            REGULARIZED | {"tokenize.vocab_size": 4096, "model.dropout": 0.0, "train.epochs": 1},
        ),
    ],
}
"""Each row applies from so many bytes of text on.

`quick`: the best model within a minute or two of training up to 2 MB, and one pass beyond.
`best`: the best model within fifteen to twenty minutes."""
FF_RATIO = {"quick": 2, "best": 3}
"""`model.ff_width` of qwen3 in units of `model.width`; more pays off over many passes only."""
GPT2_FF_RATIO = 4

# What other settings change --------------------------------------------------------------------

LARGEST_BIGRAMS = 8192
"""Larger vocabularies start from random weights, because bigrams are counted in a square table."""
ADAMW: Values = {"train.lr": 0.003, "train.beta1": 0.9, "train.beta2": 0.95}
"""Where `train.optimizer` is `adamw`, or `train.adapt` is `lora`."""

# What weights to start from (`init_from`) change -----------------------------------------------

FROM_BASE: dict[str, list[tuple[int, Values]]] = {
    "muon": [
        (0, {"train.lr": 0.01, "train.embedding_lr": 0.015, "train.head_lr": 0.003}),
        (512, {"train.lr": 0.002, "train.embedding_lr": 0.0003, "train.head_lr": 0.0003}),
    ],
    "adamw": [(0, {"train.lr": 0.0015}), (512, {"train.lr": 0.0001})],
    "lora": [(0, {"train.lr": 0.007}), (512, {"train.lr": 0.0003})],
}
"""Learning rates small enough to keep what the weights know, by `train.optimizer` or for
`train.adapt: lora`. Each row applies from so many units of width on. Half of the usual rates served
small models; the rates of wide ones are common practice and were not measured here."""
FEW_PASSES: Values = {
    "model.dropout": 0.0,
    "train.split_tokens": 0.0,
    "train.share_spellings": False,
    "train.calibrate": False,
}
"""Fine-tuning runs few epochs: regularization costs more than it saves."""
AT_MOST_FROM_BASE = {"train.epochs": 4, "model.context": 1024}
"""Upper limits of what the recipe says."""

BY_LENGTH = ("model.context", "train.batch_size")
"""What depends on the lengths of documents or records, too."""


@dataclass(frozen=True)
class Automatic:
    """What `auto` stands for in `params.yaml`, for a text of `text_bytes`."""

    recipe: str
    text_bytes: int
    values: Values
    """Of every setting that may be `auto`."""
    used: list[str]
    """The settings that `params.yaml` leaves `auto`."""
    base: Mapping[str, Any]
    """The settings that the weights of `init_from` fix."""
    context: int
    """`model.context`, whether given or `auto`."""
    lengths: Lengths | None = None

    def chosen(self, without: tuple[str, ...] = ()) -> Values:
        """The values of the settings that are `auto`, but for some of these."""
        return {key: self.values[key] for key in self.used if key not in without}

    def lines(self, section: str) -> list[str]:
        """One line for each setting of a section that is `auto`: its value and where it is from."""
        recipe = f"recipe {self.recipe} for {self.text_bytes:,} bytes of text"
        of = self.lengths
        long = f", {of.kind} of up to {of.long:,} tokens" if of else ""
        why = {key: recipe + long * (key in BY_LENGTH) for key in self.used}
        why |= dict.fromkeys(self.base, "init_from")
        own = (key for key in self.used if key.startswith(section + "."))
        return [f"{key} = {self.values[key]} (auto: {why[key]})" for key in own]


def automatic(
    text_bytes: int,
    path: Path = PARAMS,
    base: Mapping[str, Any] = EMPTY,
    lengths: Lengths | None = None,
) -> Automatic:
    """The values of the recipe that `params.yaml` names, for a text of `text_bytes`.

    `lengths` are those of documents or records. `base` holds the settings that the weights of
    `init_from` fix, where `model.context` is their longest context.

    Raises:
        UserError: there is no such recipe, or a setting contradicts `init_from`.
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
    if lengths and "model.context" in used:
        usual = values["model.context"]
        longer = lengths.context(usual, base.get("model.context", 1 << 20))
        batch = max(1, values["train.batch_size"] * usual // longer)  # as many tokens in a step
        values |= {"model.context": longer, "train.batch_size": batch}
    context = _whole(given.get("model.context")) or values["model.context"]
    return Automatic(recipe, text_bytes, values, used, base, context, lengths)


def derive(
    recipe: str, text_bytes: int, given: dict[str, Any], base: Mapping[str, Any] = EMPTY
) -> Values:
    """The recipe's values; some depend on those `given` in `params.yaml`, or on `base`."""
    values = COMMON | _row(BY_SIZE[recipe], text_bytes)
    said = {key: value for key, value in given.items() if value != "auto"}
    width = _whole(given.get("model.width")) or values["model.width"]
    heads = _whole(given.get("model.heads"))
    if heads is None:
        # About 64 wide, and of an even size, which rotary positions need.
        counts = range(min(256, max(1, width // 64)), 0, -1)
        heads = next((count for count in counts if width % (2 * count) == 0), 1)
    arch, adamw = said.get("model.arch", "qwen3"), said.get("train.optimizer") == "adamw"
    lora = said.get("train.adapt") == "lora"
    values |= {"model.heads": heads, "model.kv_heads": heads}
    values["model.ff_width"] = (GPT2_FF_RATIO if arch == "gpt2" else FF_RATIO[recipe]) * width
    vocabulary = _whole(given.get("tokenize.vocab_size")) or values["tokenize.vocab_size"]
    large = said.get("tokenize.tokenizer", "bpe") != "bpe" or vocabulary > LARGEST_BIGRAMS
    if arch != "qwen3" or large or said.get("model.tie_embeddings") is True:
        values["model.init"] = "random"
    if adamw or lora:
        values |= ADAMW
    if base:
        rates = FROM_BASE["lora" if lora else "adamw" if adamw else "muon"]
        values |= _row(rates, base.get("model.width", 0))
        values |= FEW_PASSES | dict(base)
        values |= {key: min(values[key], most) for key, most in AT_MOST_FROM_BASE.items()}
    return values


def _row(table: list[tuple[int, Values]], size: int) -> Values:
    return [row for start, row in table if start <= size][-1]


def _whole(value: Any) -> int | None:
    """`value` as a whole number; None where it is none, which its own setting refuses later."""
    try:
        return int(convert(value, int))
    except (ValueError, OverflowError):
        return None
