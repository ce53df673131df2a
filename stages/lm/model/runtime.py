"""The machine a run computes on: device, precision, threads, random generators."""

import ctypes
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import UserError
from ..settings.runtime import RuntimeSettings
from .busy_machine import sleep_when_busy

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


@dataclass(frozen=True)
class Machine:
    """Where a run computes, resolved from the settings."""

    device: torch.device
    precision: str
    """Of the matrix products: `bf16` or `float32`."""
    threads: int

    def autocast(self) -> AbstractContextManager[Any]:
        """The context in which a forward pass and a loss are computed."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def describe(self) -> dict[str, Any]:
        """What can change the last bits of a result, as plain values."""
        return {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "precision": self.precision,
            "threads": self.threads,
        }


def pick_machine(runtime: RuntimeSettings, precision: str = "float32") -> Machine:
    """The machine that `runtime` asks for, with torch's threads set.

    Raises:
        UserError: the device asked for is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    device = runtime.device
    if device == "auto":
        device = next((name for name in available if available[name]), "cpu")
    elif not available.get(device, True):
        raise UserError(
            f"params.yaml: runtime.device is {device!r}, but torch {torch.__version__} finds no "
            "such device here; set it to auto, or install a build of torch that supports it."
        )
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    _keep_freed_memory()
    if device == "cpu":
        sleep_when_busy()
    if precision == "auto":
        precision = "bf16" if _multiplies_bf16(device) else "float32"
    return Machine(torch.device(device), precision, torch.get_num_threads())


def _keep_freed_memory() -> None:
    """Have the C library reuse freed memory instead of returning it to the system.

    glibc returns large blocks, and the system then clears every page again for the next step's
    tensors. That takes some percent of a step of the default model, a sixth with GPT-2's
    vocabulary. C libraries without `mallopt` are left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)


def _multiplies_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device == "cpu":
        # torch has no public function for this. Without these instructions bf16 is slower.
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def can_compile(device: torch.device) -> bool:
    """Whether `torch.compile` works here: on a CPU it needs a C++ compiler."""
    try:
        torch.compile(torch.neg)(torch.zeros(2, device=device))
    except Exception as error:  # whatever a missing or broken tool chain raises
        print(f"training without torch.compile, which does not work here: {first_line(error)}")
        return False
    return True


def add_in_order() -> None:
    """Make compiled CPU code deterministic, bit for bit; call before compiling.

    Otherwise its threads sum the gradients of an embedding row in an arbitrary order. The
    uncompiled operators sum in the order of the text and take no longer.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling costs time, and no code here reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def changes_warning(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A warning if a run continues on a machine where its last bits may differ, else "".

    `before` and `now` are results of `Machine.describe`, possibly with further keys.
    """
    changes = [f"{key} was {before[key]}, is {now[key]}" for key in now if now[key] != before[key]]
    if not changes:
        return ""
    return f"the last bits may differ from an uninterrupted run: {'; '.join(changes)}"


def first_line(error: Exception) -> str:
    """The first line of an exception's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of every random generator that training on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_random_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    """Restore the generators from `random_state`; those of other devices are not touched."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
