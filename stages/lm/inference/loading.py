"""From a model file to something that writes text. What is in a file decides how it is read."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.artifact import opened_artifact
from ..core.errors import UserError
from ..core.files import MAKE_AGAIN, read_errors
from ..core.paths import shown
from ..model import checkpoint
from ..model.busy_machine import sleep_when_busy
from ..model.checkpoint import Checkpoint, build_model
from ..model.config import ModelConfig
from ..model.transformer import Transformer
from ..quantization import quantized_model
from ..quantization.quantized_model import QuantizedModel
from ..quantization.schemes import StoredWeight
from ..text.interface import Tokenizer
from ..text.stored_tokenizer import load_tokenizer
from .engine import Engine, make_engine
from .native import decode
from .token_step import TokenStep, make_token_step

FORGED = (LookupError, TypeError, AttributeError, ValueError, RuntimeError, UserError)
"""What values of other types and sizes than a model's can raise."""


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to generate. Shared between callers: nothing in it changes by use."""

    config: ModelConfig
    build: Callable[[], Transformer] = field(repr=False)
    """Makes `model`, of weights that have been checked."""
    tokenizer: Tokenizer
    scheme: str
    """`float32`, or the scheme its weights were quantized with."""
    provenance: dict[str, Any]
    """`model` and `train` settings, `data` (tokens, bytes, digests) and `metrics` of training."""
    file_bytes: int
    weights: dict[str, StoredWeight] | None = None
    """Quantized weights by their names in `model`; None where they are float32, or on a device
    other than a CPU."""
    id: str = ""
    """What the files in `metrics/` call it, see `Artifact`."""

    @property
    def answers(self) -> bool:
        """Whether it was trained on records: it answers a prompt instead of continuing a text."""
        return self._learned("records") and bool(self.tokenizer.chat.template)

    @property
    def opening(self) -> list[int]:
        """The tokens before the beginning of a text: of documents, the one that ends each."""
        end = self.tokenizer.text_end
        if self._learned("documents") and end is not None:
            return [end]
        return list(self.tokenizer.opening)

    def _learned(self, kind: str) -> bool:
        data = self.provenance.get("data")
        return isinstance(data, dict) and bool(data.get(kind))

    def lead(self, prompt: str) -> str:
        """What is shown before what it writes: an answer begins on a line of its own."""
        return f"{prompt}\n" if self.answers else prompt

    @cached_property
    def model(self) -> Transformer:
        """The model in float32. Made when it is first asked for: the engine does without."""
        return self.build()

    @cached_property
    def engine(self) -> Engine | None:
        """The weights for the C engine, where it serves them."""
        return None if self.weights is None else make_engine(self.config, self.weights)

    @cached_property
    def token_step(self) -> TokenStep | None:
        """The weights for torch's packed products, where they are faster than `model`."""
        return None if self.weights is None else make_token_step(self.config, self.weights)


def load_model(path: Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model in a checkpoint or in a quantized artifact, in float32.

    Raises:
        UserError: the file is missing, cannot be read, is damaged, forged or of another kind.
    """
    kinds = {checkpoint.KIND: checkpoint.VERSION, quantized_model.KIND: quantized_model.VERSION}
    device = torch.device(device)
    if device.type == "cpu":
        sleep_when_busy()
    with (
        read_errors(path),
        opened_artifact(path, kinds) as (kind, content, name),
        ThreadPoolExecutor(1) as pool,
    ):
        size = path.stat().st_size
        weights = None
        try:
            tokenizing = pool.submit(load_tokenizer, content["tokenizer"])
            if kind == checkpoint.KIND:
                stored = Checkpoint.from_content(content, path)
                config, provenance = stored.config, stored.provenance
                scheme, model = "float32", stored.build().to(device)

                def build() -> Transformer:
                    return model
            else:
                quantized = checked(QuantizedModel.from_content(content, decode))
                config, provenance = quantized.config, quantized.provenance
                scheme = quantized.scheme
                weights = quantized.tensors if device.type == "cpu" else None

                def build() -> Transformer:
                    return build_model(config, quantized.dequantized()).to(device)

            tokenizer = tokenizing.result()
            if tokenizer.vocab_size != config.vocab_size:
                raise ValueError(
                    f"it is a model of {config.vocab_size} tokens, but a vocabulary of "
                    f"{tokenizer.vocab_size}"
                )
        except FORGED as error:
            if "memory" in str(error):  # torch has no class of its own for it
                raise MemoryError from error
            raise UserError(
                f"{shown(path)} holds no whole model ({error}); {MAKE_AGAIN}"
            ) from error
    return LoadedModel(config, build, tokenizer, scheme, provenance, size, weights, name)


def checked(quantized: QuantizedModel) -> QuantizedModel:
    """`quantized`, if a model can be built of it: all that `build` would find is found here.

    Its weights have the names and shapes that its `config` gives. Raises anything if not.
    """
    if not re.fullmatch(r"f16|int8|int4|gptq\d(\.\d{1,3})?", quantized.scheme):
        raise ValueError(f"there is no scheme {quantized.scheme!r}")
    for name, weight in quantized.tensors.items():
        # A product of finite scales and codes is finite: both have few bits.
        halves = weight if isinstance(weight, Tensor) else weight.scales
        if not halves.isfinite().all():
            raise ValueError(f"the stored weight {name} holds a value that is no number")
    Checkpoint(quantized.config, {}, quantized.tokenizer, quantized.provenance)  # refuses others
    return quantized
