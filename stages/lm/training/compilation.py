"""Whether a run is compiled: only if that works here and the run is long enough to gain by it.

The decision depends on the whole run, not on the steps left, so a resumed run decides the same.
"""

from ..model.runtime import Machine, add_in_order, can_compile
from ..model.transformer import Transformer

COMPILE_FROM_FLOPS = 5e13
"""On a CPU compiling takes up to half a minute and then saves about a tenth of each step. It pays
from about five minutes of training on, which two cores need for about this many operations."""
COMPILE_FROM_PASSES = 2_000
"""Micro-batches from which it pays on a GPU: on an H100 compiling took 20 to 25 s and saved 9 ms of
a small model's pass, 26 ms of a pass of GPT-2 over 32,768 tokens."""


def pays_to_compile(setting: str, device: str, passes: int, flops: float) -> bool:
    """Whether to compile a run of `passes` micro-batches and `flops` operations.

    `setting` is `train.compile`.
    """
    if setting != "auto":
        return setting == "on"
    if device == "cuda":
        return passes > COMPILE_FROM_PASSES
    return flops > COMPILE_FROM_FLOPS


def compile_if_it_pays(
    model: Transformer, machine: Machine, setting: str, passes: int, flops: float
) -> bool:
    """Compile `model` if that pays and works here; returns whether it was compiled."""
    device = machine.device
    if not pays_to_compile(setting, device.type, passes, flops) or not can_compile(device):
        return False
    if device.type == "cpu":
        add_in_order()
    # CUDA graphs (mode "reduce-overhead") would save a small model's kernel launches, but on an
    # H100 with torch 2.11 some runs failed and others reached a worse loss.
    model.compile()
    return True
