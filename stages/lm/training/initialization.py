"""The weights that training starts from."""

import torch
from torch import Tensor

from ..data.dataset import TokenData
from ..model.initialization import init_weights
from ..model.runtime import Machine
from ..model.transformer import Transformer
from .bigrams import fit_bigrams
from .lora import init_adapters


def set_initial_weights(
    model: Transformer,
    data: TokenData,
    machine: Machine,
    seed: int,
    from_bigrams: bool,
    pretrained: dict[str, Tensor] | None,
) -> str:
    """Load `pretrained`, or draw random weights and, if `from_bigrams`, fit them to token pairs.

    Returns "base", "bigrams", or "" for random weights. `seed` seeds the weights and dropout.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # dropout
    if pretrained is not None:
        init_adapters(model, generator)
        model.load_state_dict(model.state_dict() | pretrained)
        return "base"
    init_weights(model, generator)
    if not from_bigrams:
        return ""
    fit_bigrams(model, data.ids("train"), machine, generator)
    return "bigrams"
