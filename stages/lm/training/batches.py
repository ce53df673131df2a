"""The batches of a training run: a pure function of the token data, the settings and the step.

A step's batch is made of `train.accumulate` micro-batches of `train.batch_size` windows (of a text)
or rows (of documents or records). Each goes through the model at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import TokenData
from ..data.document_rows import document_targets, gather_rows
from ..data.sequence_packing import IGNORE_INDEX, ids_of, targets_and_segments
from ..data.splits import SPLITS
from ..data.windows import DocumentRowSampler, PackedRowSampler, WindowSampler, gather
from ..settings.train import TrainSettings
from .token_splitting import split_tokens


@dataclass(frozen=True)
class MicroBatch:
    """B windows or rows of T tokens."""

    num_targets: int
    """Targets that are learned; the others are `IGNORE_INDEX`."""
    inputs: Tensor
    """(B, T); `targets` and `segments` have the same shape."""
    targets: Tensor
    segments: Tensor | None = None
    """Rows only: the document or record of each token; tokens attend within their own."""


class Batches:
    """The micro-batches of every step, as tensors on `device`."""

    def __init__(
        self, data: TokenData, context: int, settings: TrainSettings, device: torch.device
    ) -> None:
        """Raises UserError if no record of a split fits the context."""
        self._data, self._settings, self._device = data, settings, device
        self._tokens = data.train
        self.too_long = 0
        """Records that are longer than the context."""
        sampler: Callable[..., WindowSampler] = WindowSampler
        if data.documents:
            sampler = partial(DocumentRowSampler, rows=data.document_rows("train", context))
        if data.records:
            rows, self.too_long = data.packed("train", context)
            for split in SPLITS[1:]:
                data.packed(split, context)  # raises now rather than at the first validation
            self._tokens, context, sampler = rows.reshape(-1), rows.shape[1] - 1, PackedRowSampler
        self.sampler = sampler(
            tokens=len(self._tokens),
            context=context,
            batch=settings.batch_size,
            seed=settings.seed,
        )
        self.windows_per_step = settings.batch_size * settings.accumulate
        self.tokens_per_step = self.windows_per_step * self.sampler.length
        self.total_steps = -(-self.sampler.num_batches(settings.epochs) // settings.accumulate)

    @property
    def num_windows(self) -> int:
        """Windows, or rows, in an epoch."""
        return self.sampler.per_epoch

    def epoch(self, step: int) -> float:
        """Epochs completed after `step` steps, as a fraction."""
        return step * self.windows_per_step / self.sampler.per_epoch

    def epochs_done(self, step: int) -> int:
        """Whole epochs completed after `step` steps, at most `train.epochs`."""
        done = step * self.windows_per_step // self.sampler.per_epoch
        return min(done, self._settings.epochs)

    def ends_epoch(self, step: int) -> bool:
        """Whether the last of `step` steps completes an epoch."""
        return self.epochs_done(step) > self.epochs_done(step - 1)

    def ends_part(self, step: int, parts: int) -> bool:
        """Whether the last of `step` steps completes one of the equal `parts` of an epoch."""
        before, after = (
            count * self.windows_per_step * parts // self.sampler.per_epoch
            for count in (step - 1, step)
        )
        return after > before

    def micro_batches(self, step: int, split_share: float) -> list[MicroBatch]:
        """The micro-batches of a step (counted from 0), with a share of their tokens split."""
        accumulate, seed = self._settings.accumulate, self._settings.seed
        # The sampler's keys are (seed, epoch) with epochs far below 2^32: no key is used twice.
        random = np.random.Generator(np.random.Philox(key=[seed, (1 << 32) + step]))
        numbers = range(step * accumulate, (step + 1) * accumulate)
        return [
            self._micro_batch(self.sampler.batch_starts(number), split_share, random)
            for number in numbers
        ]

    def _windows(self, starts: np.ndarray) -> np.ndarray:
        """The tokens of windows or rows and the next one, (B, T + 1)."""
        length, documents = self.sampler.length, self._data.documents
        if isinstance(self.sampler, DocumentRowSampler) and documents:
            return gather_rows(self._tokens, self.sampler.rows[starts], length, documents.end)
        return gather(self._tokens, starts, length)

    def _micro_batch(
        self, starts: np.ndarray, split_share: float, random: np.random.Generator
    ) -> MicroBatch:
        rows = self._windows(starts)
        if split_share:
            rows = split_tokens(rows, self._data.merges, split_share, random)
        arrays, num_targets = [rows[:, :-1], rows[:, 1:]], rows[:, 1:].size
        if self._data.documents:
            arrays[1:] = document_targets(rows, self._data.documents.end)
        if self._data.records:
            arrays = [ids_of(rows[:, :-1]), *targets_and_segments(rows)]
        if len(arrays) > 2:
            num_targets = int((arrays[1] != IGNORE_INDEX).sum())
        tensors = (torch.from_numpy(each).to(self._device, non_blocking=True) for each in arrays)
        return MicroBatch(num_targets, *tensors)
