"""Loss on held-out data in the four units of `model/metrics.py`, by split and over all splits."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..data.dataset import TokenData
from ..data.splits import read_chunks
from ..inference.loading import LoadedModel
from ..model.metrics import loss_units
from ..model.runtime import Machine
from ..model.scoring import score, score_documents, score_split
from ..settings.evaluate import EvaluateSettings
from ..text.interface import Tokenizer
from ..text.parallel import encode_chunks

SPLITS = ("val", "test")


@dataclass(frozen=True)
class ScoredPart:
    """The beginning of a split, as far as `evaluate.max_bytes` allows."""

    tokens: np.ndarray
    """Ids, shape (tokens,)."""
    bytes: int


class LossSum(NamedTuple):
    """Sums over scored tokens: their -ln p, their number, and their size in bytes."""

    nats: float
    tokens: int
    bytes: float


def scored_part(data: TokenData, split: str, tokenizer: Tokenizer, max_bytes: int) -> ScoredPart:
    """The first tokens of a split that fit into `max_bytes`, at least one to be scored."""
    tokens = getattr(data, split)
    size = data.meta.splits[split].bytes
    if size <= max_bytes:
        return ScoredPart(tokens, size)
    lead = int(bool(data.documents))  # the first token of documents is not scored
    lengths = np.array([len(token) or 1 for token in tokenizer.tokens])
    ends = np.cumsum(lengths[tokens[: max_bytes + lead]])
    count = max(1 + lead, int(np.searchsorted(ends, max_bytes + lead, side="right")))
    return ScoredPart(tokens[:count], int(ends[count - 1]) - lead)


def text_losses(
    loaded: LoadedModel,
    data: TokenData,
    parts: dict[str, ScoredPart],
    machine: Machine,
    min_context: int,
    name: str,
) -> dict[str, Any]:
    """The losses on `parts` of the splits of a text or of documents, with a progress bar `name`."""
    sums = {}
    total = sum(len(part.tokens) for part in parts.values())
    with tqdm(total=total, desc=f"evaluate {name}", unit="token", unit_scale=True) as bar:
        for split, part in parts.items():
            how: dict[str, Any] = {"min_context": min_context, "progress": bar.update}
            if data.documents:
                end = data.documents.end
                nats, count = score_documents(loaded.model, part.tokens, end, machine, **how)
            else:
                lead = data.preceding(split, loaded.config.context)
                nats, count = score(loaded.model, part.tokens, lead, machine, **how)
            sums[split] = LossSum(nats, count, part.bytes)
    return losses_by_split(sums)


def completion_losses(loaded: LoadedModel, data: TokenData, machine: Machine) -> dict[str, Any]:
    """The losses on the completions of held-out records."""
    sums = {}
    for split in SPLITS:
        nats, count = score_split(loaded.model, data, split, machine)
        sums[split] = LossSum(nats, count, data.scored_bytes(split, count))
    return losses_by_split(sums)


def losses_by_split(sums: dict[str, LossSum]) -> dict[str, Any]:
    """The loss of each split and, as `held_out`, that of all together."""
    nats, tokens, size = map(sum, zip(*sums.values(), strict=True))
    losses = {split: loss_units(*each) for split, each in sums.items()}
    return losses | {"held_out": loss_units(nats, int(tokens), size)}


def file_losses(
    models: dict[str, LoadedModel], path: Path, machine: Machine, settings: EvaluateSettings
) -> dict[str, dict[str, float]]:
    """Each model's loss on another text file. The first token is context only, not scored.

    Raises:
        UserError: the text is a single token.
    """
    with read_errors(path, "put it there, or leave evaluate.also empty."):
        size = min(path.stat().st_size, settings.max_bytes)
    tokenizer = models["float"].tokenizer
    chunks = encode_chunks(tokenizer, read_chunks(path, range(size)))
    opening = np.array(tokenizer.opening, np.uint32)
    tokens = np.concatenate([opening, *(ids for ids, _ in chunks)])
    first, tokens = tokens[:1], tokens[1:]
    if not len(tokens):
        raise UserError(f"{shown(path)} is a single token; use a longer text as evaluate.also.")
    size -= len(tokenizer.tokens[int(first[0])])
    losses = {}
    for name, loaded in models.items():
        sums = score(loaded.model, tokens, first, machine, min_context=settings.min_context)
        losses[name] = loss_units(*sums, size)
    return losses
