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

from . import artifact
from .base_files import CONFIG, base_digest, base_json, find_base, weight_files
from .checkpoint import Checkpoint, check_config
from .errors import UserError
from .foreign import LAYER_NORM_EPSILON, huggingface_tensors
from .fused import EPSILON
from .model import ModelConfig, Transformer
from .paths import shown
from .settings.loader import quoted

REMEDY = "take another model, or set init_from to scratch."

FIXED: dict[str, dict[str, Any]] = {
    "qwen3": {
        "hidden_act": "silu",
        "rms_norm_eps": EPSILON,
        "attention_bias": False,
        "use_sliding_window": False,
        "quantization_config": None,
    },
    "gpt2": {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "quantization_config": None,
    },
}
"""What `config.json` must say where it says it, by `model_type`; all are transformers' defaults."""

SIZES = {
    "qwen3": {
        "context": "max_position_embeddings",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "width": "hidden_size",
        "ff_width": "intermediate_size",
        "vocab_size": "vocab_size",
    },
    "gpt2": {
        "context": "n_positions",
        "layers": "n_layer",
        "heads": "n_head",
        "kv_heads": "n_head",
        "width": "n_embd",
        "ff_width": "n_inner",
        "vocab_size": "vocab_size",
    },
}
"""Where `config.json` has the fields of `ModelConfig`."""

BARE_GPT2 = ("wte.", "wpe.", "h.", "ln_f.")
IMPLIED = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Tensors that say nothing: the causal mask and the angles, which we compute."""

MAX_LAYERS = 200
"""What `model.layers` takes."""
FROM_CONFIG = ("arch", "layers", "heads", "kv_heads", "width", "ff_width", "tie_embeddings")
"""Settings of `model:` that the weights decide."""


@dataclass(frozen=True)
class Base:
    """A model to start from: its shape, and where its weights lie."""

    name: str
    """As `init_from` has it."""
    path: Path
    config: ModelConfig
    """`vocab_size` is the number of rows there are, special tokens and padding included."""

    @classmethod
    def open(cls, name: str) -> "Base":
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
    try:
        return Checkpoint.load(path)
    except UserError as error:
        remedy = "copy it there again, or set init_from to scratch."
        raise UserError(str(error).replace(artifact.REMEDY, remedy)) from error


def read_config(path: Path) -> ModelConfig:
    """The shape that a Hugging Face `config.json` describes.

    Raises:
        UserError: it is not readable, or asks for what our graph does not have.
    """
    document = base_json(path)
    if not isinstance(document, dict):
        raise UserError(f"{shown(path)} is no group of keys; bring it again.")

    def refuse(key: str, needed: str, value: Any = None) -> UserError:
        value = document.get(key) if value is None else value
        return UserError(f"{shown(path)}: {key} is {quoted(value)}, but must be {needed}; {REMEDY}")

    arch = document.get("model_type")
    if not isinstance(arch, str) or arch not in FIXED:
        raise refuse("model_type", "gpt2 or qwen3")
    for key, needed in FIXED[arch].items():
        if document.get(key, needed) != needed:
            raise refuse(key, quoted(needed))
    tied = document.get("tie_word_embeddings", arch == "gpt2")
    if type(tied) is not bool:
        raise refuse("tie_word_embeddings", "true or false")
    sizes: dict[str, int] = {}
    for field, key in SIZES[arch].items():
        size = document.get(key)
        if size is None and key == "n_inner":
            size = 4 * sizes["width"]
        if type(size) is not int or not 0 < size < 1 << 31:
            raise refuse(key, "a positive whole number")
        sizes[field] = size
    sizes.setdefault("head_size", sizes["width"] // sizes["heads"])
    if arch == "gpt2" and sizes["width"] % sizes["heads"]:
        raise refuse("n_head", f"a divisor of n_embd {sizes['width']}")
    if document.get("layer_types") not in (None, ["full_attention"] * sizes["layers"]):
        raise refuse("layer_types", "full_attention in every layer")
    rope_base = document.get("rope_theta", ModelConfig.rope_base)
    for key in ("rope_parameters", "rope_scaling"):
        rope = document.get(key) or {}
        if not isinstance(rope, dict):
            raise refuse(key, "a group of keys")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default" or rope.get("partial_rotary_factor", 1) != 1:
            raise refuse(key, "of the type default")
        rope_base = rope.get("rope_theta", rope_base)
    if type(rope_base) not in (int, float) or not 1 <= rope_base <= 1e9:
        raise refuse("rope_theta", "a number from 1 to 1e9", rope_base)
    return ModelConfig(
        arch=arch, **sizes, tie_embeddings=tied, dropout=0.0, rope_base=float(rope_base)
    )
