"""The validation split: its loss, by which the best weights are chosen, and calibration on it."""

import torch
from torch import Tensor

from ..data.dataset import TokenData
from ..model.metrics import loss_units
from ..model.runtime import Machine
from ..model.scoring import final_states, score_split
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
            states, targets = final_states(
                self._model, self._data, "val", self._machine, CALIBRATION_TOKENS
            )
        return fit_factors(states, targets, self._model, start)

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss on this split from nats per token; comparable across tokenizers."""
        tokens = self._scored_tokens
        size = self._data.meta.splits["val"].bytes
        return loss_units(loss * tokens, tokens, size)["bits_per_byte"]
