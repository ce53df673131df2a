"""Weights that exist: a GPT-2 or Qwen3 model of Hugging Face, or a checkpoint of ours, as ours.

What our graph cannot express is refused, never approximated. Nothing is unpickled, and nothing here
knows about text or tokens.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import UserError
from ..core.paths import shown
from ..model.checkpoint import Checkpoint, check_config
from ..model.transformer import ModelConfig, Transformer
from .config import read_config
from .files import CONFIG, REMEDY, base_digest, find_base, weight_files
from .hf_weights import huggingface_tensors

BARE_GPT2 = ("wte.", "wpe.", "h.", "ln_f.")
IMPLIED = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Tensors that say nothing: the causal mask and the angles, which we compute."""

MAX_LAYERS = 200
"""What `model.layers` takes."""
FROM_CONFIG = ("arch", "layers", "heads", "kv_heads", "width", "ff_width", "tie_embeddings")
"""Settings of `model:` that the weights decide."""


@dataclass(frozen=True)
class PretrainedModel:
    """A model to start from: its shape, and where its weights lie."""

    name: str
    """As `init_from` has it."""
    path: Path
    config: ModelConfig
    """`vocab_size` is the number of rows there are, special tokens and padding included."""

    @classmethod
    def open(cls, name: str) -> "PretrainedModel":
        """The weights that `init_from` names; reads their shape only.

        Raises:
            UserError: they are missing, damaged, or of a kind that our graph is not.
        """
        path = find_base(name)
        config = read_checkpoint(path).config if path.is_file() else read_config(path / CONFIG)
        try:
            check_config(config, MAX_LAYERS)
        except RuntimeError as error:
            raise UserError(f"{shown(path)} is no model that can be ({error}); {REMEDY}") from None
        return cls(name, path, config)

    def values(self) -> dict[str, Any]:
        """What it decides of the settings, by `section.key`; of the context, the longest."""
        shape = {f"model.{key}": getattr(self.config, key) for key in (*FROM_CONFIG, "context")}
        return shape | {"model.init": "base"}

    def digest(self) -> str:
        """SHA-256 of everything the weights are read from."""
        return base_digest(self.path)

    def shape(self, vocab_size: int, context: int, dropout: float) -> ModelConfig:
        """The shape of a model that starts from it, with its ordinary tokens alone.

        Raises:
            UserError: it has fewer tokens.
        """
        ours, rows = self.path.is_file(), self.config.vocab_size
        if vocab_size > rows or (ours and vocab_size != rows):
            raise UserError(
                f"{shown(self.path)} has weights for {rows:,} tokens, but the vocabulary has "
                f"{vocab_size:,}: they do not belong together. Run `dvc repro`, or bring the "
                "model's own vocabulary."
            )
        return replace(self.config, vocab_size=vocab_size, context=context, dropout=dropout)

    def weights(self, config: ModelConfig) -> dict[str, Tensor]:
        """The state dict, float32, of a `Transformer` of a `shape` of this base.

        Raises:
            UserError: as `tensors` does.
        """
        weights = {name: torch.zeros(each.shape) for name, each in empty_weights(config).items()}
        views = self._named(config, weights)
        for name, tensor in self.tensors():
            # Further rows are special tokens, padding, or positions beyond the context.
            views[name].copy_(tensor[: len(views[name])])
        return weights

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Each stored tensor and its name there, once it is found to fit; little memory at a time.

        Raises:
            UserError: one is missing, unknown, of another shape, or not finite.
        """
        expected = self._named(self.config, empty_weights(self.config))
        missing, alike = set(expected), []
        embedding = next(iter(expected))
        for name, tensor in self._stored():
            tied_head = name == "lm_head.weight" and self.config.tie_embeddings
            if name not in expected and not tied_head:
                raise self._misfit(f"{name} is a tensor that such a model does not have")
            shape = expected[embedding if tied_head else name].shape
            if tensor.shape != shape or not tensor.is_floating_point():
                raise self._misfit(
                    f"{name} is {tensor.dtype} of shape {list(tensor.shape)}, but must be floats "
                    f"of shape {list(shape)}"
                )
            tensor = tensor.float()
            if not tensor.isfinite().all():
                raise self._misfit(f"{name} holds a value that is no number")
            if self.config.tie_embeddings and (tied_head or name == embedding):
                alike.append(tensor)
            if not tied_head:
                missing.discard(name)
                yield name, tensor
        if missing:
            raise self._misfit(f"the tensor {min(missing)} is missing")
        if len(alike) > 1 and not torch.equal(*alike):
            raise self._misfit("lm_head.weight is another matrix than the embedding it is tied to")

    def _named(self, config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Views into a state dict under the names that the files have, the embedding first."""
        return weights if self.path.is_file() else huggingface_tensors(config, weights)

    def _stored(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors as they are in the files, one after the other, without what says nothing."""
        if self.path.is_file():
            yield from read_checkpoint(self.path).tensors.items()
            return
        for file in weight_files(self.path):
            try:
                with safe_open(file, framework="pt") as tensors:
                    for name in tensors.keys():  # noqa: SIM118 - it is no dict
                        # Older files of GPT-2 leave the first word out.
                        bare = self.config.arch == "gpt2" and name.startswith(BARE_GPT2)
                        if not IMPLIED.search(name):
                            yield f"transformer.{name}" if bare else name, tensors.get_tensor(name)
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"{shown(file)} is not readable as safetensors ({error}); it is damaged or "
                    "not all there. Bring it again."
                ) from error

    def _misfit(self, what: str) -> UserError:
        return UserError(
            f"{shown(self.path)} does not hold the {self.config.arch} model that it describes: "
            f"{what}. Bring the files of one and the same model, or set init_from to scratch."
        )


def empty_weights(config: ModelConfig) -> dict[str, Tensor]:
    """The state dict of `Transformer` without any values."""
    with torch.device("meta"):
        return Transformer(config).state_dict()


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint of ours that the user brought, so that `dvc repro` does not make it again.

    Raises:
        UserError: it is damaged or of another kind.
    """
    return Checkpoint.load(path, remedy="copy it there again, or set init_from to scratch.")
