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
    """`auto`: the smallest file within `max_increase`. `gptq2`, `gptq3`, `gptq4`: GPTQ on
    training text, with about so many bits per weight. `int4`: 4-bit codes with a float16 scale per
    64 columns. `int8`: 8-bit codes with a scale per row. `f16`: float16."""

    max_increase: Annotated[float, Range(0, 1)]
    """Largest relative increase of bits per byte on the validation split that `auto` accepts. Below
    0.1 bits per byte it is relative to 0.1."""
