"""A folder with LoRA adapters of PEFT, which are merged into their base as its weights are read.

The files are those of PEFT's `save_pretrained`: `adapter_config.json`, and for each adapted matrix
`base_model.model.<name>.lora_A.weight` (r, columns) and `lora_B.weight` (rows, r).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import UserError
from ..core.paths import shown
from ..model.config import ModelConfig
from ..settings.loader import quoted
from .files import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    COPY_AGAIN,
    OTHER_MODEL,
    adapter_base,
    adapter_config,
)
from .hf_weights import stored_tensors

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


def _scale(folder: Path) -> float:
    """What B A is multiplied by."""
    document = adapter_config(folder)
    rank: Any = document.get("r")
    alpha: Any = document.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise UserError(
            f"{shown(folder / ADAPTER_CONFIG)}: r is {quoted(rank)} and lora_alpha is "
            f"{quoted(alpha)}, but both must be positive numbers; {COPY_AGAIN}"
        )
    return float(alpha / (rank**0.5 if document.get("use_rslora") else rank))


def merged(
    config: ModelConfig, folder: Path, stored: Iterator[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the base, the adapted ones with W + scale B A in float32.

    Raises:
        UserError: an adapter fits no matrix of the base.
    """
    path, scale = folder / ADAPTER_WEIGHTS, _scale(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in stored_tensors(config, [path]):
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{shown(path)}: {name[:80]} is no part of an adapter; {OTHER_MODEL}")
        pairs.setdefault(f"{match[1]}.weight", {})[match[2]] = tensor.float()
    for name, tensor in stored:
        pair = pairs.pop(name, None)
        if pair is None:
            yield name, tensor
            continue
        # GPT-2's matrices are stored transposed.
        shape = tensor.T.shape if config.arch == "gpt2" else tensor.shape
        fits = pair.keys() == {"A", "B"} and pair["A"].ndim == pair["B"].ndim == tensor.ndim == 2
        if not fits or (len(pair["B"]), pair["A"].size(1)) != shape:
            raise UserError(
                f"{shown(path)}: the adapter of {name[:80]} does not fit a matrix of shape "
                f"{list(shape)}; its base must be the model that it was trained on."
            )
        if len(pair["A"]) != pair["B"].size(1):
            raise UserError(f"{shown(path)}: the adapter of {name[:80]} is damaged; {COPY_AGAIN}")
        added = scale * pair["B"] @ pair["A"]
        yield name, tensor.float() + (added.T if config.arch == "gpt2" else added)
    if pairs:
        raise UserError(
            f"{shown(path)}: {min(pairs)[:80]} is adapted, but {shown(adapter_base(folder))} has "
            "no such matrix; its base must be the model that it was trained on."
        )
