"""The weights that training starts from."""

import torch
from torch import Tensor

from ..data.dataset import TokenData
from ..model.initialization import init_weights
from ..model.runtime import Machine
from ..model.transformer import Transformer
from ..settings.model import FITTED
from .bigrams import fit_bigrams
from .looking_back import look_back, reserved_dimensions
from .lora import init_adapters


def set_initial_weights(
    model: Transformer,
    data: TokenData,
    machine: Machine,
    seed: int,
    init: str,
    pretrained: dict[str, Tensor] | None,
) -> None:
    """Load `pretrained`, or draw random weights and change them as `init` (`model.init`) says.

    `seed` seeds the weights and dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    if pretrained is not None:
        init_adapters(model, generator)
        model.load_state_dict(model.state_dict() | pretrained)
        return
    init_weights(model, generator)
    if init in FITTED:
        looking_back = init == "looking_back"
        reserved = reserved_dimensions(model.config) if looking_back else 0
        fit_bigrams(model, data.ids("train"), machine, generator, reserved)
        if looking_back:
            look_back(model, generator)
