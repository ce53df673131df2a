"""How well a model predicts held-out tokens: the sum of -ln p over them, in nats.

Training (validation), quantize (choice of a scheme) and evaluate all measure loss with these
functions. Knows nothing about bytes, files or settings.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.dataset import TokenData
from ..data.document_rows import document_rows, document_targets, gather_rows
from ..data.sequence_packing import IGNORE_INDEX, ids_of, targets_and_segments
from .runtime import Machine
from .transformer import Transformer

BATCH_TOKENS = 8_192
"""Tokens in one forward pass: enough to keep all cores busy, few enough to need little memory."""
BATCH_LOGITS = 1 << 27
"""Logits in one forward pass, 512 MiB in float32; a window may have more."""


def sliding_windows(lead: int, total: int, context: int, min_context: int) -> np.ndarray:
    """Windows that together score each of the tokens `lead` ... `total` - 1 of a sequence once.

    Each row of the result (windows, 3) is (first input token, first scored token, end of scored
    tokens). In its window a scored token has at least `min_context` tokens before it, or all that
    the sequence has.
    """
    stride = max(1, context - min_context)
    begins = np.arange(lead, total, stride)
    ends = np.minimum(begins + stride, total)
    return np.stack([np.maximum(ends - 1 - context, 0), begins, ends], axis=1)


@torch.no_grad()
def score(
    model: Transformer,
    tokens: np.ndarray,
    lead: np.ndarray,
    machine: Machine,
    *,
    min_context: int = 0,
    max_tokens: int | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> tuple[float, int]:
    """The sum of -ln p over `tokens` (N,), and how many were scored.

    `lead` (M,) holds the tokens before them in the text: context, not scored. If it is empty, the
    first of `tokens` has no context and is not scored either. With `max_tokens`, only so many
    windows, evenly spaced, are used that about `max_tokens` tokens are scored. `min_context` is
    that of `sliding_windows`; `progress` is called with the number of tokens of each batch.
    """
    nats, count = 0.0, 0
    for batch in scored_batches(model, tokens, lead, machine, min_context, max_tokens):
        losses = F.cross_entropy(batch.logits, batch.targets, reduction="none")
        nats += losses.double().sum().item()
        count += losses.numel()
        progress(losses.numel())
    return nats, count


class ScoredBatch(NamedTuple):
    """Consecutive tokens of a text, N, and what a model makes of those before each of them."""

    states: Tensor
    """Its final states (N, W), float32."""
    logits: Tensor
    """(N, V), float32."""
    targets: Tensor
    """The tokens' ids (N,), int64."""


@torch.no_grad()
def scored_batches(
    model: Transformer,
    tokens: np.ndarray,
    lead: np.ndarray,
    machine: Machine,
    min_context: int = 0,
    max_tokens: int | None = None,
) -> Iterator[ScoredBatch]:
    """All that `score` counts, in the order of the text. Arguments as there."""
    if not len(lead):
        lead, tokens = tokens[:1], tokens[1:]
    sequence = np.concatenate([lead, tokens])
    context = model.config.context
    windows = sliding_windows(len(lead), len(sequence), context, min(min_context, context - 1))
    stride = windows[0, 2] - windows[0, 1]
    if max_tokens is not None and len(windows) * stride > max_tokens:
        keep = max(1, max_tokens // stride)
        windows = windows[np.arange(keep) * len(windows) // keep]
    was_training = model.training
    model.eval()
    for batch in _batches(windows, windows_at_once(context, model, BATCH_TOKENS)):
        length = batch[0, 2] - 1 - batch[0, 0]
        rows = sequence[batch[:, :1] + np.arange(length + 1)].astype(np.int64)
        rows = torch.from_numpy(rows).to(machine.device)
        with machine.autocast():
            states = model.states(rows[:, :-1])
            logits = model.logits(states)
        scored = batch[0, 2] - batch[0, 1]
        states, logits, targets = (
            part[:, -scored:].flatten(0, 1) for part in (states, logits, rows)
        )
        yield ScoredBatch(states.float(), logits.float(), targets)
    model.train(was_training)


def score_records(
    model: Transformer,
    rows: np.ndarray,
    machine: Machine,
    *,
    max_tokens: int | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> tuple[float, int]:
    """The sum of -ln p over the answers in packed `rows` (N, T + 1), and their tokens' number.

    An answer includes the token that ends it. With `max_tokens`, only so many rows, evenly spaced,
    are used that they hold about `max_tokens` tokens, prompts included.
    """
    return _score_rows(model, _record_batches(model, rows, max_tokens), machine, progress)


def score_documents(
    model: Transformer,
    tokens: np.ndarray,
    end: int,
    machine: Machine,
    *,
    min_context: int = 0,
    max_tokens: int | None = None,
    progress: Callable[[int], Any] = lambda tokens: None,
) -> tuple[float, int]:
    """The sum of -ln p over a split of documents and their ends, and how many tokens these are.

    The first of `tokens` is context only. Rows that go on with a long document repeat
    `min_context` tokens as context. `max_tokens` is that of `score_records`.
    """
    batches = _document_batches(model, tokens, end, min_context, max_tokens)
    return _score_rows(model, batches, machine, progress)


RowBatch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Inputs, targets and segments of some rows, (B, T) each."""


def _record_batches(
    model: Transformer, rows: np.ndarray, max_tokens: int | None
) -> Iterator[RowBatch]:
    length = rows.shape[1] - 1
    for part in _row_batches(rows, length, model, max_tokens):
        yield ids_of(part[:, :-1]).astype(np.int64), *targets_and_segments(part)


def _document_batches(
    model: Transformer, tokens: np.ndarray, end: int, min_context: int, max_tokens: int | None
) -> Iterator[RowBatch]:
    context = model.config.context
    rows = document_rows(tokens, end, context, overlap=min(min_context, context - 1))
    length = int((rows[:, 2] - rows[:, 0]).max())
    for part in _row_batches(rows, length, model, max_tokens):
        ids = gather_rows(tokens, part, length, end)
        targets, segments = document_targets(ids, end)
        targets[part[:, :1] + np.arange(length) < part[:, 1:2]] = IGNORE_INDEX
        yield ids[:, :-1], targets, segments


def _row_batches(
    rows: np.ndarray, length: int, model: Transformer, max_tokens: int | None
) -> Iterator[np.ndarray]:
    """Rows of `length` tokens in batches of about `BATCH_TOKENS`; see `score_records`."""
    if max_tokens is not None and len(rows) * length > max_tokens:
        keep = max(1, max_tokens // length)
        rows = rows[np.arange(keep) * len(rows) // keep]
    size = windows_at_once(length, model, BATCH_TOKENS)
    for first in range(0, len(rows), size):
        yield rows[first : first + size]


@torch.no_grad()
def _score_rows(
    model: Transformer,
    batches: Iterator[RowBatch],
    machine: Machine,
    progress: Callable[[int], Any],
) -> tuple[float, int]:
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    for arrays in batches:
        scored = int((arrays[1] != IGNORE_INDEX).sum())
        inputs, targets, segments = (torch.from_numpy(array).to(machine.device) for array in arrays)
        with machine.autocast():
            mean = model(inputs, targets=targets, segments=segments)
        nats += mean.item() * scored
        count += scored
        progress(scored)
    model.train(was_training)
    return nats, count


def score_split(
    model: Transformer,
    data: TokenData,
    split: str,
    machine: Machine,
    max_tokens: int | None = None,
) -> tuple[float, int]:
    """The score of a split, each window or row scored from its first token on."""
    context = model.config.context
    if data.documents:
        ids = getattr(data, split)
        return score_documents(model, ids, data.documents.end, machine, max_tokens=max_tokens)
    if data.records:
        rows, _ = data.packed(split, context)
        return score_records(model, rows, machine, max_tokens=max_tokens)
    lead = data.preceding(split, context)
    return score(model, getattr(data, split), lead, machine, max_tokens=max_tokens)


def final_states(
    model: Transformer, data: TokenData, split: str, machine: Machine, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """Final states (N, W), float32, of what `score_split` scores, and the tokens wanted (N,)."""
    tokens, context = getattr(data, split), model.config.context
    if not data.documents and not data.records:
        lead = data.preceding(split, context)
        windows = scored_batches(model, tokens, lead, machine, max_tokens=max_tokens)
        parts = [(batch.states, batch.targets) for batch in windows]
    else:
        rows = (
            _document_batches(model, tokens, data.documents.end, 0, max_tokens)
            if data.documents
            else _record_batches(model, data.packed(split, context)[0], max_tokens)
        )
        parts = list(_row_states(model, rows, machine))
    states, targets = zip(*parts, strict=True)
    return torch.cat(states), torch.cat(targets)


@torch.no_grad()
def _row_states(
    model: Transformer, batches: Iterator[RowBatch], machine: Machine
) -> Iterator[tuple[Tensor, Tensor]]:
    was_training = model.training
    model.eval()
    for arrays in batches:
        inputs, targets, segments = (torch.from_numpy(array).to(machine.device) for array in arrays)
        with machine.autocast():
            states = model.states(inputs, segments=segments)
        scored = targets != IGNORE_INDEX
        yield states[scored].float(), targets[scored]
    model.train(was_training)


def windows_at_once(length: int, model: Transformer, tokens: int) -> int:
    """How many windows of `length` tokens, of about `tokens` in all, are scored together."""
    return max(1, min(tokens, BATCH_LOGITS // model.config.vocab_size) // length)


def _batches(windows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Up to `size` consecutive windows of equal lengths at a time."""
    shapes = np.stack([windows[:, 2] - windows[:, 0], windows[:, 2] - windows[:, 1]], axis=1)
    changes = np.flatnonzero((shapes[1:] != shapes[:-1]).any(axis=1)) + 1
    for run in np.split(windows, changes):
        for first in range(0, len(run), size):
            yield run[first : first + size]
