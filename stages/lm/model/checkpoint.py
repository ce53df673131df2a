"""`models/checkpoint.pt`: trained weights with all that is needed to use them.

Knows nothing about quantization or about how to continue training.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.artifact import CHECKPOINT_FORMAT, read_artifact, write_artifact
from ..core.errors import UserError
from ..core.files import MAKE_AGAIN
from ..core.paths import shown
from .transformer import ModelConfig, Transformer, rotary_tables

KIND, VERSION = CHECKPOINT_FORMAT
SIZES = ("vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "ff_width")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model as plain values."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    """The state dict of `Transformer`, float32."""
    tokenizer: dict[str, str]
    """`name`, `pattern` and `vocabulary` (a .tiktoken file's text)."""
    provenance: dict[str, Any]
    """The settings, the text's digest and the metrics the weights come from."""

    def __post_init__(self) -> None:
        # A forged file holds anything; everyone after this relies on the types.
        if not all(
            type(name) is str and isinstance(weight, Tensor) and weight.dtype == torch.float32
            for name, weight in self.tensors.items()
        ):
            raise TypeError("its weights are not all float32")
        if (type(self.tokenizer), type(self.provenance)) != (dict, dict):
            raise TypeError("its tokenizer or its provenance is no group of values")
        texts = [self.tokenizer[part] for part in ("name", "pattern", "vocabulary")]
        if not all(type(text) is str for text in texts):
            raise TypeError("its tokenizer is no text")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        content = {
            "config": asdict(self.config),
            "tokenizer": self.tokenizer,
            "provenance": self.provenance,
            "tensors": self.tensors,
        }
        write_artifact(path, KIND, VERSION, content)

    @classmethod
    def load(cls, path: Path, remedy: str = MAKE_AGAIN) -> "Checkpoint":
        """Read the file.

        Raises:
            UserError: the file is missing, damaged or of another kind; `remedy` ends the message.
        """
        return cls.from_content(read_artifact(path, {KIND: VERSION}, remedy)[1], path, remedy)

    @classmethod
    def from_content(
        cls, content: dict[str, Any], path: Path, remedy: str = MAKE_AGAIN
    ) -> "Checkpoint":
        """The checkpoint in an artifact's content; `path` and `remedy` are for messages."""
        try:
            config = ModelConfig(**content["config"])
            return cls(config, content["tensors"], content["tokenizer"], content["provenance"])
        except (AttributeError, LookupError, TypeError) as error:
            raise UserError(f"{shown(path)} lacks a part of a model ({error}); {remedy}") from error

    def build(self) -> Transformer:
        """The model with these weights, ready for inference."""
        return build_model(self.config, self.tensors)


def build_model(config: ModelConfig, tensors: dict[str, Tensor]) -> Transformer:
    """A `Transformer` in evaluation mode whose weights are exactly `tensors`.

    Of tensors on the device `meta`, which have no values, all but those is checked.

    Raises:
        UserError: names or shapes are not those that `config` gives, or a weight is not finite.
    """
    forged = "the file was edited or forged."
    try:
        check_config(config, len(tensors))
        with torch.device("meta"):  # no memory for weights that the file has to bring
            model = Transformer(config)
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"the stored weights do not fit the stored model shape ({error}); {forged}"
        ) from error
    if config.arch == "qwen3":
        model.cos, model.sin = rotary_tables(config)
    for name, weight in tensors.items():
        # A sum of finite numbers is only not finite where it overflows, and many times faster.
        if not (weight.is_meta or weight.sum().isfinite() or weight.isfinite().all()):
            raise UserError(f"the stored weight {name} holds a value that is no number; {forged}")
    return model.eval().requires_grad_(False)


def check_config(config: ModelConfig, tensors: int) -> None:
    """Refuse a shape that no model of so many tensors has, whatever is in them.

    Raises:
        RuntimeError: it is one.
    """
    numbers = asdict(config)
    for name in SIZES:
        if type(numbers[name]) is not int or not 0 < numbers[name] < 1 << 31:
            raise RuntimeError(f"{name} is {numbers[name]!r}")
    for name, low, high in (("dropout", 0, 0.9), ("rope_base", 1, 1e9)):
        if type(numbers[name]) not in (int, float) or not low <= numbers[name] <= high:
            raise RuntimeError(f"{name} is {numbers[name]!r}")
    if config.arch not in ("qwen3", "gpt2") or type(config.tie_embeddings) is not bool:
        raise RuntimeError(f"arch is {config.arch!r}, tie_embeddings {config.tie_embeddings!r}")
    if config.heads % config.kv_heads or (config.arch == "qwen3" and config.head_size % 2):
        raise RuntimeError("the heads do not divide")
    if config.context < 2:
        raise RuntimeError("a context of 1 leaves no room to write")
    if config.layers > tensors or config.context * config.head_size > 1 << 26:
        raise RuntimeError("it is larger than the weights")
