"""The validation loss, by which the best weights and the temperature are chosen."""

import torch

from ..data.dataset import TokenData
from ..model.metrics import loss_units
from ..model.runtime import Machine
from ..model.scoring import score_split
from ..model.transformer import Transformer
from .calibration import CALIBRATION_TOKENS, best_temperature, temperature_scaled


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

    def best_temperature(self, start: float) -> float:
        """See `calibration.best_temperature`."""

        def loss_at(temperature: float) -> float:
            with temperature_scaled(self._model, temperature):
                return self.loss(CALIBRATION_TOKENS)

        return best_temperature(loss_at, start)

    def bits_per_byte(self, loss: float) -> float:
        """Convert a loss on this split from nats per token; comparable across tokenizers."""
        tokens = self._scored_tokens
        size = self._data.meta.splits["val"].bytes
        return loss_units(loss * tokens, tokens, size)["bits_per_byte"]
