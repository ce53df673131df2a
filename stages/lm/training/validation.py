"""The validation split: its loss, by which the best weights are chosen, and calibration on it."""

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import TokenData
from ..data.sequence_packing import ids_of, targets_and_segments
from ..data.windows import gather
from ..model.metrics import loss_units
from ..model.runtime import Machine
from ..model.scoring import BATCH_TOKENS, score_split
from ..model.transformer import Transformer
from .calibration import CALIBRATION_TOKENS, fit_factors


class Validator:
    """Scores a model on at most `val_tokens` tokens of the validation split."""

    def __init__(
        self, model: Transformer, data: TokenData, machine: Machine, val_tokens: int
    ) -> None:
        self._model, self._data, self._machine = model, data, machine
        self._val_tokens = val_tokens
        self._scored_tokens = data.scored_tokens("val")

    def loss(self, max_tokens: int | None = None) -> float:
        """Nats per token of the current weights, on at most `max_tokens` tokens."""
        most = min(max_tokens or self._val_tokens, self._val_tokens)
        # Scoring uses many window shapes; compiling for each would cost more than it saves.
        with torch.compiler.set_stance("force_eager"):
            nats, tokens = score_split(self._model, self._data, "val", self._machine, most)
        return nats / tokens

    def calibrate(self, start: Tensor) -> Tensor:
        """The factors of the final norm, from those of `start` on: see `fit_factors`."""
        with torch.compiler.set_stance("force_eager"):
            return fit_factors(*self._last_states(), self._model, start)

    @torch.no_grad()
    def _last_states(self) -> tuple[Tensor, Tensor]:
        """The last vectors (N, W) of at most `CALIBRATION_TOKENS` tokens, and the next tokens (N,).

        The tokens are those of windows that do not overlap, or of packed records, evenly spaced.
        """
        rows, length = self._rows()
        keep = max(1, min(len(rows), CALIBRATION_TOKENS // length))
        rows = rows[np.arange(keep) * len(rows) // keep].astype(np.int64)
        was_training = self._model.training
        self._model.eval()
        states, targets = [], []
        for some in np.split(rows, range(step := max(1, BATCH_TOKENS // length), keep, step)):
            arrays = [some[:, :-1], some[:, 1:]]
            if self._data.records:
                arrays = [ids_of(some[:, :-1]), *targets_and_segments(some)]
            inputs, wanted, *segments = (
                torch.from_numpy(array).to(self._machine.device) for array in arrays
            )
            with self._machine.autocast():
                last = self._model.states(inputs, segments=segments[0] if segments else None)
            states.append(last[wanted >= 0].float())
            targets.append(wanted[wanted >= 0])
        self._model.train(was_training)
        return torch.cat(states), torch.cat(targets)

    def _rows(self) -> tuple[np.ndarray, int]:
        """Windows of a text or packed records, (N, length + 1) tokens, and `length`."""
        context = self._model.config.context
        if self._data.records:
            rows, _ = self._data.packed("val", context)
            return rows, rows.shape[1] - 1
        tokens = np.concatenate([self._data.preceding("val", context), self._data.val])
        length = min(context, len(tokens) - 1)
        starts = np.arange(len(tokens) - 1 - length, -1, -length)[::-1]
        starts = starts[-max(1, len(self._data.val) // length) :]
        return gather(tokens, starts, length), length

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss on this split from nats per token; comparable across tokenizers."""
        tokens = self._scored_tokens
        size = self._data.meta.splits["val"].bytes
        return loss_units(loss * tokens, tokens, size)["bits_per_byte"]
