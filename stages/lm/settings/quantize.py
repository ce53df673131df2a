"""The `quantize:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice, Range

SCHEMES = ("auto", "gptq2", "gptq3", "gptq4", "int4", "int8", "f16")


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How the trained weights are stored in the final artifact."""

    SECTION: ClassVar[str] = "quantize"

    scheme: Annotated[str, Choice(SCHEMES)]
    """`auto`: the smallest file within `max_increase`. `gptq2`, `gptq3`, `gptq4`: codes of about so
    many bits a weight, found on training text. `int4`: 4-bit codes with one float16 scale for 64
    columns. `int8`: 8-bit codes with one a row. `f16`: float16, nothing more."""
    max_increase: Annotated[float, Range(0, 1)]
    """The share of its bits per byte on the validation split that the model may lose; below 0.1
    bits per byte, that share of 0.1."""
