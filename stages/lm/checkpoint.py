"""`models/checkpoint.pt`: trained weights with all that is needed to use them.

Knows nothing about quantization or about how to continue training.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .artifact import read_artifact, write_artifact
from .errors import UserError
from .model import ModelConfig, Transformer
from .paths import shown

KIND = "checkpoint"
VERSION = 1
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
    def load(cls, path: Path) -> "Checkpoint":
        """Read the file.

        Raises:
            UserError: the file is missing, damaged or of another kind.
        """
        return cls.from_content(read_artifact(path, {KIND: VERSION})[1], path)

    @classmethod
    def from_content(cls, content: dict[str, Any], path: Path) -> "Checkpoint":
        """The checkpoint in an artifact's content; `path` is for messages."""
        try:
            config = ModelConfig(**content["config"])
            return cls(config, content["tensors"], content["tokenizer"], content["provenance"])
        except (KeyError, TypeError) as error:
            raise UserError(f"{shown(path)} lacks a part of a model ({error}).") from error

    def build(self) -> Transformer:
        """The model with these weights, ready for inference."""
        return build_model(self.config, self.tensors)


def build_model(config: ModelConfig, tensors: dict[str, Tensor]) -> Transformer:
    """A `Transformer` in evaluation mode whose weights are exactly `tensors`.

    Raises:
        UserError: names or shapes are not those that `config` gives, or a weight is not finite.
    """
    forged = "the file was edited or forged. Run `dvc repro` to make it again."
    try:
        check_config(config, tensors)
        model = Transformer(config)
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"the stored weights do not fit the stored model shape ({first}); {forged}"
        ) from error
    for name, weight in tensors.items():
        if not weight.isfinite().all():
            raise UserError(f"the stored weight {name} holds a value that is no number; {forged}")
    return model.eval().requires_grad_(False)


def check_config(config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Refuse a shape that asks for more memory than the weights that came with it.

    Raises:
        RuntimeError: it does.
    """
    stored = sum(weight.numel() for weight in tensors.values())
    numbers = asdict(config)
    for name in SIZES:
        if type(numbers[name]) is not int or not 0 < numbers[name] <= max(stored, 1 << 17):
            raise RuntimeError(f"{name} is {numbers[name]!r}")
    tables = config.context * config.head_size
    if config.layers > len(tensors) or config.width * config.ff_width > stored or tables > 1 << 26:
        raise RuntimeError("it is larger than the weights")
