"""A pretrained model as a `Transformer` state dict: Hugging Face folder, GGUF file or checkpoint.

A model that `Transformer` cannot compute exactly is refused, never approximated. No format that is
read here can run code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import UserError
from ..core.paths import shown
from ..model.checkpoint import Checkpoint, check_config
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from .adapters import merged
from .config import read_config
from .files import (
    ADAPTER_CONFIG,
    CHECKPOINT,
    CONFIG,
    COPY_AGAIN,
    GGUF,
    OTHER_MODEL,
    adapter_base,
    base_digest,
    find_base,
    weight_files,
)
from .gguf_reader import read_gguf
from .gguf_weights import gguf_config, gguf_tensors, stored_gguf_tensors
from .hf_weights import huggingface_tensors, shift_norms, stored_tensors

MAX_LAYERS = 200
"""The largest `model.layers` that params.yaml may have."""
FIXED_SETTINGS = ("arch", "layers", "heads", "kv_heads", "width", "ff_width", "tie_embeddings")
"""Settings of `model:` that follow from the weights."""


@dataclass(frozen=True)
class PretrainedModel:
    """A model to start from: its configuration, and where its weights are stored."""

    name: str
    """The value of `init_from`."""
    path: Path
    """A Hugging Face folder, a GGUF file or a checkpoint."""
    config: ModelConfig
    """As stored: `vocab_size` counts every embedding row, special tokens and padding included."""
    adapter: Path | None = None
    """A folder of adapters that are merged into the weights."""

    @classmethod
    def open(cls, name: str) -> "PretrainedModel":
        """The model that `init_from` names; reads its configuration, not its weights.

        Raises:
            UserError: it is missing, damaged, or not a model that `Transformer` can compute.
        """
        path, adapter = find_base(name), None
        if (path / ADAPTER_CONFIG).is_file():
            path, adapter = adapter_base(path), path
        if path.suffix == GGUF:
            config = gguf_config(read_gguf(path))
            stored = 4 * path.stat().st_size  # no format has fewer bits
        else:
            config = read_checkpoint(path).config if path.is_file() else read_config(path / CONFIG)
            stored = sum(file.stat().st_size for file in weight_files(path))  # a byte or more each
        model = cls(name, path, config, adapter)
        try:
            check_config(config, MAX_LAYERS)
            weights = model._stored_views(config, meta_weights(config)).values()
            # Nothing of its size is made before.
            if sum(weight.numel() for weight in weights) > stored:
                raise RuntimeError(f"its weights do not fit into files of {stored:,} numbers")
        except RuntimeError as error:
            raise UserError(
                f"{shown(path)} describes an impossible model ({error}); {OTHER_MODEL}"
            ) from None
        return model

    def fixed_settings(self) -> dict[str, Any]:
        """The settings that follow from the weights, by `section.key`; `context` is the maximum."""
        names = (*FIXED_SETTINGS, "context")
        return {f"model.{name}": getattr(self.config, name) for name in names} | {
            "model.init": "base"
        }

    def digest(self) -> str:
        """SHA-256 of the files that configuration and weights are read from."""
        return base_digest(self.path, self.adapter)

    def config_for(self, vocab_size: int, context: int, dropout: float) -> ModelConfig:
        """The configuration of a model that starts from these weights.

        `vocab_size` counts ordinary tokens, and may be below the stored number of rows where these
        include special tokens and padding.

        Raises:
            UserError: the vocabulary does not belong to the weights.
        """
        is_checkpoint, rows = self.path.suffix == CHECKPOINT, self.config.vocab_size
        if vocab_size > rows or (is_checkpoint and vocab_size != rows):
            raise UserError(
                f"{shown(self.path)} has weights for {rows:,} tokens, but the vocabulary has "
                f"{vocab_size:,}: they do not belong together. Run `dvc repro`, or bring the "
                "model's own vocabulary."
            )
        return replace(self.config, vocab_size=vocab_size, context=context, dropout=dropout)

    def state_dict(self, config: ModelConfig) -> dict[str, Tensor]:
        """The weights, float32, for a `Transformer` of a configuration from `config_for`.

        Raises:
            UserError: see `tensors`.
        """
        weights = {name: torch.zeros(meta.shape) for name, meta in meta_weights(config).items()}
        views = self._stored_views(config, weights)
        for name, tensor in self.tensors():
            # Rows beyond these are special tokens, padding, or positions beyond the context.
            views[name].copy_(tensor[: len(views[name])])
        return weights

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each stored tensor, float32, with its stored name, after it was checked.

        One tensor is in memory at a time.

        Raises:
            UserError: a tensor is missing, unknown, of another shape, or not finite.
        """
        expected = self._stored_views(self.config, meta_weights(self.config))
        missing, tied = set(expected), []
        embedding = next(iter(expected))
        for name, tensor in self._stored():
            tied_head = name == "lm_head.weight" and self.config.tie_embeddings
            if name not in expected and not tied_head:
                raise self._misfit(f"{name} is a tensor that this model does not have")
            shape = expected[embedding if tied_head else name].shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise self._misfit(
                    f"{name} is {tensor.dtype} of shape {list(tensor.shape)}, but must be floats "
                    f"of shape {list(shape)}"
                )
            tensor = tensor.float()
            if self.path.is_dir():
                tensor = shift_norms(self.config, name, tensor, 1.0)
            if not tensor.isfinite().all():
                raise self._misfit(f"{name} holds a value that is not finite")
            if self.config.tie_embeddings and (tied_head or name == embedding):
                tied.append(tensor)
            if not tied_head:
                missing.discard(name)
                yield name, tensor
        if missing:
            raise self._misfit(f"the tensor {min(missing)} is missing")
        if len(tied) > 1 and not torch.equal(*tied):
            raise self._misfit("lm_head.weight differs from the embedding that it is tied to")

    def _stored_views(self, config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views into a state dict by the names in the files; the token embedding comes first."""
        if self.path.suffix == GGUF:
            return gguf_tensors(config, weights)
        return weights if self.path.is_file() else huggingface_tensors(config, weights)

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor as stored, one after the other."""
        if self.path.suffix == GGUF:
            return stored_gguf_tensors(self.config, self.path)
        if self.path.is_file():
            return iter(read_checkpoint(self.path).tensors.items())
        stored = stored_tensors(self.config, weight_files(self.path))
        return merged(self.config, self.adapter, stored) if self.adapter else stored

    def _misfit(self, what: str) -> UserError:
        return UserError(
            f"{shown(self.path)}: the weights are not those of the {self.config.arch} model that "
            f"its configuration describes: {what}. Copy all files of one model there again, or set "
            "init_from to scratch."
        )


def meta_weights(config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of a `Transformer` on the device `meta`: shapes without memory."""
    with torch.device("meta"):
        return Transformer(config).state_dict()


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint that the user put into `data/base/`, which `dvc repro` could not restore.

    Raises:
        UserError: it is damaged or of another kind.
    """
    return Checkpoint.load(path, COPY_AGAIN)
