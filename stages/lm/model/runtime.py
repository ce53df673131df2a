"""The machine: device, number format, threads, random states. Knows nothing about models."""

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
    """`bf16` or `float32`: of the matrix products."""
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
    """Ask the C library to keep what is freed for what is allocated next.

    glibc gives large blocks back to the system, which has to clear every page again for the next
    step's tensors: some hundredths of a step of the default model, a sixth with GPT-2's vocabulary.
    Other libraries have no `mallopt`, or may ignore it.
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
        # torch has no public question for this; without the instructions bf16 is slower.
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
    """Have code that is compiled for a CPU from now on repeat itself, bit for bit.

    Its threads would add up the gradients of a token's occurrences in the order in which they come
    by. The uncompiled operators, which do it in the text's order, take no longer.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing reads memory that nothing was written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def changes_warning(before: dict[str, Any], now: dict[str, Any]) -> str:
    """A warning if a run continues where its last bits may differ, else nothing.

    `before` and `now` are what `Machine.describe` said, and what a caller added to it.
    """
    changes = [f"{key} was {before[key]}, is {now[key]}" for key in now if now[key] != before[key]]
    if not changes:
        return ""
    return f"the last bits may differ from an uninterrupted run: {'; '.join(changes)}"


def first_line(error: Exception) -> str:
    """What an exception says, without its stack."""
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
    """Put generators back where `random_state` found them; those of other devices are left."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
