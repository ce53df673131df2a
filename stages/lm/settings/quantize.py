"""The `quantize:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice


@dataclass(frozen=True, kw_only=True)
class QuantizeSettings:
    """How the trained weights are stored in the final artifact."""

    SECTION: ClassVar[str] = "quantize"

    scheme: Annotated[str, Choice(("int8", "f16"))]
    """`int8`: 8-bit codes with one float16 scale a row. `f16`: float16, nothing more."""
