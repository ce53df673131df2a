"""`models/checkpoint.pt`: trained weights, with the configuration and tokenizer they need.

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
from .config import FAMILIES, ROPE_SCALINGS, ModelConfig
from .transformer import Transformer

KIND, VERSION = CHECKPOINT_FORMAT
NUMBERS: tuple[tuple[str, float, float], ...] = (
    ("dropout", 0.0, 0.9),
    ("norm_eps", 1e-12, 0.1),
    ("sliding_window", 0, 1 << 31),
    ("rope_base", 1.0, 1e9),
    ("rope_factor", 1.0, 1e4),
    ("rope_original_context", 0, 1 << 31),
    ("rope_low", 0.0, 1e4),
    ("rope_high", 0.0, 1e4),
    ("rope_attention", 0.1, 10.0),
)
"""Numbers of a `ModelConfig`, each with the least and the largest."""
SIZES = ("vocab_size", "context", "layers", "heads", "kv_heads", "head_size", "width", "ff_width")


@dataclass(frozen=True)
class Checkpoint:
    """A trained model: weights, and what is needed to use them and to tell where they come from."""

    config: ModelConfig
    tensors: dict[str, Tensor]
    """The state dict of `Transformer`, float32."""
    tokenizer: dict[str, str]
    """See `TokenizerMeta.stored`."""
    provenance: dict[str, Any]
    """The settings, the text's digest and the metrics of the training run."""

    def __post_init__(self) -> None:
        # A forged file may hold any types; all later code relies on these.
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
    """A `Transformer` in evaluation mode that uses `tensors` as its weights, without a copy.

    Tensors may be on the device `meta`: names and shapes are checked then, values are not.

    Raises:
        UserError: names or shapes do not fit `config`, or a weight is not finite.
    """
    forged = "the file was edited or forged."
    try:
        check_config(config, len(tensors))
        with torch.device("meta"):  # allocates nothing: the weights come from the file
            model = Transformer(config)
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise UserError(
            f"the stored weights do not fit the stored model shape ({error}); {forged}"
        ) from error
    if not config.family.learned_positions:
        model.make_rotary_tables()
    for name, weight in tensors.items():
        # The sum is many times faster and nearly always decides; of finite weights it may overflow.
        if not (weight.is_meta or weight.sum().isfinite() or weight.isfinite().all()):
            raise UserError(f"the stored weight {name} holds a value that is no number; {forged}")
    return model.eval().requires_grad_(False)


def check_config(config: ModelConfig, tensors: int) -> None:
    """Refuse values that no model has, and sizes that would take more memory than the file did.

    `tensors`, the number of weights in the file, bounds the layers.

    Raises:
        RuntimeError: `config` is refused.
    """
    values = asdict(config)
    for name in SIZES:
        if type(values[name]) is not int or not 0 < values[name] < 1 << 31:
            raise RuntimeError(f"{name} is {values[name]!r}")
    for name, low, high in NUMBERS:
        # A range of whole numbers takes no other.
        whole = type(low) is int
        if type(values[name]) not in ((int,) if whole else (int, float)) or not (
            low <= values[name] <= high
        ):
            raise RuntimeError(f"{name} is {values[name]!r}")
    if config.arch not in FAMILIES or type(config.tie_embeddings) is not bool:
        raise RuntimeError(f"arch is {config.arch!r}, tie_embeddings {config.tie_embeddings!r}")
    if config.rope_scaling not in ROPE_SCALINGS or config.rope_high <= config.rope_low:
        raise RuntimeError(f"rope_scaling is {config.rope_scaling!r}")
    rotary = not config.family.learned_positions
    if config.heads % config.kv_heads or (rotary and config.head_size % 2):
        raise RuntimeError("the heads do not divide")
    if config.context < 2:
        raise RuntimeError("a context of 1 leaves no room to write")
    if config.layers > tensors or config.context * config.head_size > 1 << 26:
        raise RuntimeError("it is larger than the weights")
