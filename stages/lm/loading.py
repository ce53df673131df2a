"""From a model file to something that writes text. What is in a file decides how it is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, quantization
from .artifact import REMEDY, read_artifact
from .checkpoint import Checkpoint, build_model
from .errors import UserError
from .model import Transformer
from .paths import shown
from .quantization import QuantizedModel
from .tokenizer import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate. Shared between callers: nothing in it changes by use."""

    model: Transformer
    tokenizer: Tokenizer
    scheme: str
    """`float32`, or the scheme its weights were quantized with."""
    provenance: dict[str, Any]
    """`model` and `train` settings, `data` (tokens, bytes, digests) and `metrics` of training."""
    file_bytes: int


def load_model(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model in a checkpoint or in a quantized artifact, in float32.

    Raises:
        UserError: the file is missing, damaged, forged or of another kind.
    """
    kinds = {checkpoint.KIND: checkpoint.VERSION, quantization.KIND: quantization.VERSION}
    size = path.stat().st_size if path.exists() else 0
    kind, content = read_artifact(path, kinds)
    try:
        if kind == checkpoint.KIND:
            stored = Checkpoint.from_content(content, path)
            scheme, tensors = "float32", stored.tensors
        else:
            quantized = QuantizedModel.from_content(content)
            stored = Checkpoint(
                quantized.config, quantized.dequantized(), quantized.tokenizer, quantized.provenance
            )
            scheme, tensors = quantized.scheme, stored.tensors
        parts = stored.tokenizer
        tokenizer = Tokenizer.from_text(parts["vocabulary"], parts["pattern"], parts["name"])
        model = build_model(stored.config, tensors)
        if tokenizer.vocab_size != model.config.vocab_size:
            raise ValueError(
                f"it is a model of {model.config.vocab_size} tokens, but a vocabulary of "
                f"{tokenizer.vocab_size}"
            )
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(f"{shown(path)} holds no whole model ({error}); {REMEDY}") from error
    return LoadedModel(model.to(device), tokenizer, scheme, stored.provenance, size)
