"""Rotary position embedding (Su et al. 2021), and how it is slowed down for longer contexts."""

import math

import torch
from torch import Tensor

from .config import ModelConfig


def rotary_tables(config: ModelConfig, *, local: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and sines for each position, (context, S); `local`: of layers with a window."""
    if local and config.family.local_rope_base:
        frequencies, scale = _frequencies(config, config.family.local_rope_base), 1.0
    else:
        frequencies, scale = scaled_frequencies(config), config.rope_attention
    angles = torch.outer(torch.arange(config.context).float(), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * scale, angles.sin() * scale


def _frequencies(config: ModelConfig, base: float) -> Tensor:
    """Radians per position, (S / 2,)."""
    half = torch.arange(0, config.head_size, 2, dtype=torch.float32) / config.head_size
    return base**-half


def scaled_frequencies(config: ModelConfig) -> Tensor:
    """The model's radians per position, (S / 2,).

    `linear` divides all by `rope_factor`. The others leave those alone that turn often within
    `rope_original_context` tokens, divide those that turn rarely, and blend in between: `llama3`
    (Llama 3.1) by turns, from `rope_low` to `rope_high`; `yarn` (Peng et al. 2023) by dimension,
    from the one with `rope_low` turns to the one with `rope_high`. YaRN also multiplies cosines and
    sines by `rope_attention`.
    """
    frequencies = _frequencies(config, config.rope_base)
    if not config.rope_scaling:
        return frequencies
    slow = frequencies / config.rope_factor
    if config.rope_scaling == "linear":
        return slow
    if config.rope_scaling == "llama3":
        turns = config.rope_original_context * frequencies / (2 * math.pi)
        kept = (turns - config.rope_low) / (config.rope_high - config.rope_low)
    else:
        first, last = (
            config.head_size
            * math.log(config.rope_original_context / (turns * 2 * math.pi))
            / (2 * math.log(config.rope_base))
            for turns in (config.rope_high, config.rope_low)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), config.head_size - 1)
        dimension = torch.arange(config.head_size // 2, dtype=torch.float32)
        kept = 1 - (dimension - first) / max(last - first, 0.001)
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * slow


def yarn_attention(factor: float) -> float:
    """YaRN's usual factor of cosines and sines."""
    return 1 + 0.1 * math.log(max(1.0, factor))
