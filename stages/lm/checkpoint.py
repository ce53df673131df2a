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
        UserError: names or shapes are not those that `config` gives.
    """
    model = Transformer(config)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"the stored weights do not fit the stored model shape ({first}); the file was edited "
            "or forged. Run `dvc repro` to make it again."
        ) from error
    return model.eval().requires_grad_(False)
