"""Stage `quantize`: `checkpoint.pt` -> `trained_model_quantized.pt`, and what it cost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from stages.lm.core import paths
from stages.lm.core.errors import run_stage
from stages.lm.core.files import write_json
from stages.lm.data.dataset import TokenData
from stages.lm.data.windows import gather
from stages.lm.model.checkpoint import Checkpoint, build_model
from stages.lm.model.metrics import loss_units
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.model.scoring import score_split
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.gptq import Calibration, calibrate, gptq
from stages.lm.quantization.quantized_model import QuantizedModel, quantize_checkpoint
from stages.lm.settings.loader import load_section
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.runtime import RuntimeSettings

CALIBRATION_TOKENS = 16_384
"""Of the training split, in windows spread evenly over it."""
CHOOSING_TOKENS = 32_768
"""Of the validation split, spread evenly, while schemes are compared; the choice is then held
against all of it."""
LEAST_BITS = 0.1
"""Of a loss below so many bits per byte, as of a task that is as good as learned, an increase is a
share of this instead: next to nothing is a large share of nothing."""
RATES = [rate / 8 for rate in range(8, 33)]
"""Bits a weight of the codes that `auto` chooses from: a finer ladder gains under 4 % of a file."""


@dataclass(frozen=True)
class Tried:
    """A scheme and what was measured of it."""

    scheme: str
    bytes: int
    """Of the coded weights; the file has about as much text in every scheme."""
    bits_per_weight: float
    val_bits_per_byte: float
    """On the part of the validation split that the schemes are compared on."""
    increase: float
    """Of it over the float model, as a share."""


def main() -> None:
    """Quantize, measure what it cost on the validation split, report sizes."""
    settings = load_section(QuantizeSettings)
    machine = pick_machine(load_section(RuntimeSettings))
    data = TokenData.load(paths.TOKENS)
    checkpoint = Checkpoint.load(paths.CHECKPOINT)
    trial = Trial(checkpoint, data, machine)
    print(f"{'weights':<12}{'bytes':>14}{'bits/weight':>13}{'val bits/byte':>15}{'increase':>10}")
    if settings.scheme == "auto":
        tried = search(trial.run, settings.max_increase)
        fitting = [one for one in tried if one.increase <= settings.max_increase]
        names = [one.scheme for one in sorted(fitting, key=lambda one: one.bytes)]
        names += [] if "f16" in names else ["f16"]
    else:
        tried = [trial.run(settings.scheme)]
        names = [settings.scheme]
    before = val_bits_per_byte(checkpoint.build(), data, machine)
    for name in names:
        quantized = trial.quantized(name)
        after = val_bits_per_byte(restored(quantized), data, machine)
        lost = share_lost(after, before)
        if lost <= settings.max_increase:
            break
    measured = {
        "val_bits_per_byte": after,
        "delta_bits_per_byte": round(after - before, 6),
        "bits_per_weight": round(quantized.bits_per_weight(), 3),
    }
    replace(quantized, measured=measured).save(paths.QUANTIZED)
    sizes = {
        "file_bytes": paths.QUANTIZED.stat().st_size,
        "checkpoint_bytes": paths.CHECKPOINT.stat().st_size,
    }
    figures: dict[str, Any] = {"scheme": quantized.scheme} | measured | sizes
    figures["tried"] = [asdict(one) for one in tried]
    write_json(paths.QUANTIZE_METRICS, figures)
    print(
        f"{quantized.scheme}: {sizes['file_bytes']:,} B, checkpoint {sizes['checkpoint_bytes']:,} "
        f"B; all of val: {after:.4f} bits/byte, {100 * lost:+.2f} %"
    )
    if lost > settings.max_increase:
        print(
            f"WARNING: quantize.scheme {quantized.scheme} loses more than quantize.max_increase "
            f"{settings.max_increase:g} allows; set quantize.scheme to auto, or to more bits."
        )


class Trial:
    """Schemes on one checkpoint, each measured on the same part of the validation split."""

    def __init__(self, checkpoint: Checkpoint, data: TokenData, machine: Machine) -> None:
        self.checkpoint, self.data, self.machine = checkpoint, data, machine
        self.float = val_bits_per_byte(checkpoint.build(), data, machine, CHOOSING_TOKENS)
        self.calibration: Calibration | None = None

    def quantized(self, scheme: str) -> QuantizedModel:
        """The checkpoint under a scheme."""
        if not scheme.startswith("gptq"):
            return quantize_checkpoint(self.checkpoint, scheme)
        if self.calibration is None:
            self.calibration = calibration(self.checkpoint, self.data)
        bits = float(scheme.removeprefix("gptq"))
        coded = gptq(self.checkpoint.tensors, self.calibration, bits)
        return quantize_checkpoint(self.checkpoint, scheme, coded)

    def run(self, scheme: str) -> Tried:
        """Try a scheme and print what it gives."""
        quantized = self.quantized(scheme)
        loss = val_bits_per_byte(restored(quantized), self.data, self.machine, CHOOSING_TOKENS)
        size, bits = len(quantized.packed), round(quantized.bits_per_weight(), 3)
        increase = round(share_lost(loss, self.float), 6)
        print(f"{scheme:<12}{size:>12,} B{bits:>13.2f}{loss:>15.4f}{100 * increase:>+9.2f}%")
        return Tried(scheme, size, bits, loss, increase)


def share_lost(after: float, before: float) -> float:
    """By which share of a loss in bits per byte another is higher."""
    return (after - before) / max(before, LEAST_BITS)


def search(run: Callable[[str], Tried], max_increase: float) -> list[Tried]:
    """Try what may be the smallest scheme that loses at most `max_increase`.

    Halves the ladder of rates until the lowest that fits is known.
    """
    tried = [run("f16"), run("int8"), run("int4")]
    low, high = 0, len(RATES)
    while low < high:
        middle = (low + high) // 2
        tried.append(run(f"gptq{RATES[middle]:g}"))
        low, high = (low, middle) if tried[-1].increase <= max_increase else (middle + 1, high)
    return tried


def calibration(checkpoint: Checkpoint, data: TokenData) -> Calibration:
    """What the training text says about the checkpoint's matrices."""
    config = checkpoint.config
    length = min(config.context, len(data.train) - 1)
    count = max(1, min(CALIBRATION_TOKENS, len(data.train)) // length)
    starts = np.arange(count) * (len(data.train) - length) // count
    windows = torch.from_numpy(gather(data.train, starts, length))
    some = data.train[:: 1 + len(data.train) // 2**22]
    frequencies = np.bincount(some, minlength=config.padded_vocab) / len(some)
    return calibrate(checkpoint.build(), windows, torch.from_numpy(frequencies).float())


def restored(quantized: QuantizedModel) -> Transformer:
    """The model that a quantized one stands for."""
    return build_model(quantized.config, quantized.dequantized())


def val_bits_per_byte(
    model: Transformer, data: TokenData, machine: Machine, max_tokens: int | None = None
) -> float:
    """Loss on the validation split, each window scored from its first token.

    With `max_tokens`, on windows thinned to about so many, as if all bytes were alike.
    """
    model = model.to(machine.device)
    nats, tokens = score_split(model, data, "val", machine, max_tokens)
    return loss_units(nats, tokens, data.scored_bytes("val", tokens))["bits_per_byte"]


if __name__ == "__main__":
    run_stage(main)
