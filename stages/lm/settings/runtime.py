"""The `runtime:` section of `params.yaml`: settings that do not change what a run computes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice, Range


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """No stage lists this section, so a change of it re-runs nothing and continues any run."""

    SECTION: ClassVar[str] = "runtime"

    device: Annotated[str, Choice(("auto", "cpu", "cuda", "mps"))]
    """`auto` takes a CUDA GPU, else Apple's GPU, else the CPU."""

    threads: Annotated[int, Range(0, 1_024)]
    """CPU threads for matrix products. 0 lets torch choose."""

    checkpoint_steps: Annotated[int, Range(0, 1_000_000_000)]
    """Steps between saves of the resume state, which each epoch's end saves as well. 0 is off."""
