"""Stage `quantize`: `checkpoint.pt` -> `trained_model_quantized.pt`, and what it cost."""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.quantize`")

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from stages.lm.core import paths
from stages.lm.core.artifact import artifact_id
from stages.lm.core.files import write_json
from stages.lm.core.stage import run_stage
from stages.lm.data.dataset import TokenData
from stages.lm.data.windows import gather
from stages.lm.inference.native import encode
from stages.lm.model.checkpoint import Checkpoint, build_model
from stages.lm.model.metrics import loss_units
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.model.scoring import score_split
from stages.lm.model.transformer import Transformer
from stages.lm.quantization.gptq import GPTQ, Calibration, calibrate
from stages.lm.quantization.quantized_model import QuantizedModel, quantize_checkpoint
from stages.lm.settings.loader import load_section
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.runtime import RuntimeSettings

CALIBRATION_TOKENS = 16_384
"""Calibration tokens, from windows spread evenly over the training split."""
CHOOSING_TOKENS = 32_768
"""Tokens to compare schemes on, spread evenly over the validation split; the chosen scheme is then
measured on all of it."""
LEAST_TOKENS = 4_096
MOST_WORK = 1 << 39
"""Tokens times weights: a larger model is calibrated and compared on fewer tokens, down to
`LEAST_TOKENS`."""
MIN_BITS_PER_BYTE = 0.1
"""Floor of the denominator in `relative_increase`, so that a nearly solved task cannot fail on a
tiny absolute loss."""
RATES = [rate / 8 for rate in range(8, 33)]
"""Bits per weight that `auto` chooses from; finer steps would save under 4 % of a file."""


@dataclass(frozen=True)
class Tried:
    """A scheme and its measurements."""

    scheme: str
    bytes: int
    """Size of the coded weights; the rest of the file is about equal in every scheme."""
    bits_per_weight: float
    val_bits_per_byte: float
    """On the validation split, or a part of it."""
    increase: float
    """Of bits per byte, relative to the float model."""


def main() -> None:
    """Quantize, measure what it cost on the validation split, report sizes."""
    settings = load_section(QuantizeSettings)
    machine = pick_machine(load_section(RuntimeSettings))
    data = TokenData.load(paths.TOKENS)
    checkpoint = Checkpoint.load(paths.CHECKPOINT)
    trials = Trials(checkpoint, data, machine, settings.max_increase)
    print(f"{'weights':<12}{'bytes':>14}{'bits/weight':>13}{'val bits/byte':>15}{'increase':>10}")
    if settings.scheme == "auto":
        tried = search(trials.run, settings.max_increase)
        fitting = [one for one in tried if one.increase <= settings.max_increase]
        candidates = [one.scheme for one in sorted(fitting, key=lambda one: one.bytes)]
        candidates += [] if "f16" in candidates else ["f16"]
    else:
        tried = [trials.run(settings.scheme)]
        candidates = [settings.scheme]
    quantized, before, after = trials.choose(candidates)
    measured = {
        "val_bits_per_byte": after,
        "delta_bits_per_byte": round(after - before, 6),
        "bits_per_weight": round(quantized.bits_per_weight(), 3),
    }
    quantized.measured.update(measured)
    quantized.save(paths.QUANTIZED)
    sizes = {
        "file_bytes": paths.QUANTIZED.stat().st_size,
        "checkpoint_bytes": paths.CHECKPOINT.stat().st_size,
    }
    figures = {
        "model": artifact_id(paths.QUANTIZED),
        "checkpoint": artifact_id(paths.CHECKPOINT),
        "scheme": quantized.scheme,
        **measured,
        **sizes,
        "tried": [asdict(one) for one in tried],
    }
    write_json(paths.QUANTIZE_METRICS, figures)
    increase = relative_increase(after, before)
    print(
        f"{quantized.scheme}: {sizes['file_bytes']:,} B, checkpoint {sizes['checkpoint_bytes']:,} "
        f"B; all of val: {after:.4f} bits/byte, {100 * increase:+.2f} %"
    )
    if increase > settings.max_increase:
        print(
            f"WARNING: quantize.scheme {quantized.scheme} loses more than quantize.max_increase "
            f"{settings.max_increase:g} allows; set quantize.scheme to auto, or to more bits."
        )


class Trials:
    """Schemes on one checkpoint, each measured on the same part of the validation split."""

    def __init__(
        self, checkpoint: Checkpoint, data: TokenData, machine: Machine, max_increase: float
    ) -> None:
        self.checkpoint, self.data, self.machine = checkpoint, data, machine
        self.max_increase = max_increase
        model = checkpoint.build()
        self.tokens = affordable(CHOOSING_TOKENS, model)
        self.float_loss = val_bits_per_byte(model, data, machine, self.tokens)
        self.gptq: GPTQ | None = None
        self.best: QuantizedModel | None = None
        """The first scheme tried, then the smallest that fits: not quantized again if chosen. The
        others are dropped, so that memory holds one quantized model."""

    def quantized(self, scheme: str) -> QuantizedModel:
        """The checkpoint's weights in a scheme."""
        if self.best is not None and self.best.scheme == scheme:
            return self.best
        if not scheme.startswith("gptq"):
            return quantize_checkpoint(self.checkpoint, scheme, encode=encode)
        if self.gptq is None:
            known = calibration(self.checkpoint, self.data)
            self.gptq = GPTQ(self.checkpoint.tensors, known)
        coded = self.gptq.codes(float(scheme.removeprefix("gptq")))
        return quantize_checkpoint(self.checkpoint, scheme, coded, encode)

    def run(self, scheme: str) -> Tried:
        """Measure a scheme and print the result."""
        quantized = self.quantized(scheme)
        loss = val_bits_per_byte(restored(quantized), self.data, self.machine, self.tokens)
        size, bits = len(quantized.packed), round(quantized.bits_per_weight(), 3)
        increase = round(relative_increase(loss, self.float_loss), 6)
        print(f"{scheme:<12}{size:>12,} B{bits:>13.2f}{loss:>15.4f}{100 * increase:>+9.2f}%")
        fits = increase <= self.max_increase
        if self.best is None or (fits and size < len(self.best.packed)):
            self.best = quantized
        return Tried(scheme, size, bits, loss, increase)

    def choose(self, candidates: list[str]) -> tuple[QuantizedModel, float, float]:
        """The first scheme that fits on all of the validation split, or else the last.

        The sample that `run` measures may have been lucky.

        Returns:
            The quantized model, and the loss before and after in bits per byte.
        """
        before = val_bits_per_byte(self.checkpoint.build(), self.data, self.machine)
        for scheme in candidates:
            quantized = self.quantized(scheme)
            after = val_bits_per_byte(restored(quantized), self.data, self.machine)
            if relative_increase(after, before) <= self.max_increase:
                break
        return quantized, before, after


def affordable(tokens: int, model: Transformer) -> int:
    """So many tokens, or fewer if the model is too large for them."""
    return max(LEAST_TOKENS, min(tokens, MOST_WORK // model.parameter_count()))


def relative_increase(after: float, before: float) -> float:
    """How much higher `after` is than `before`, both in bits per byte, as a fraction."""
    return (after - before) / max(before, MIN_BITS_PER_BYTE)


def search(run: Callable[[str], Tried], max_increase: float) -> list[Tried]:
    """Try schemes until the smallest whose increase is at most `max_increase` is among them.

    A binary search over `RATES`; the increase is taken to fall with the rate.
    """
    tried = [run("f16"), run("int8"), run("int4")]
    low, high = 0, len(RATES)
    while low < high:
        middle = (low + high) // 2
        tried.append(run(f"gptq{RATES[middle]:g}"))
        low, high = (low, middle) if tried[-1].increase <= max_increase else (middle + 1, high)
    return tried


def calibration(checkpoint: Checkpoint, data: TokenData) -> Calibration:
    """Statistics of the checkpoint's matrices on the training split."""
    config, model, ids = checkpoint.config, checkpoint.build(), data.ids("train")
    length = min(config.context, len(ids) - 1)
    count = max(1, min(affordable(CALIBRATION_TOKENS, model), len(ids)) // length)
    starts = np.arange(count) * (len(ids) - length) // count
    windows = torch.from_numpy(gather(ids, starts, length))
    some = ids[:: 1 + len(ids) // 2**22]
    frequencies = np.bincount(some, minlength=config.padded_vocab) / len(some)
    return calibrate(model, windows, torch.from_numpy(frequencies).float())


def restored(quantized: QuantizedModel) -> Transformer:
    """The float model with dequantized weights."""
    return build_model(quantized.config, quantized.dequantized())


def val_bits_per_byte(
    model: Transformer, data: TokenData, machine: Machine, max_tokens: int | None = None
) -> float:
    """Loss on the validation split, each window scored from its first token.

    With `max_tokens`, about so many tokens are scored, and bytes per token are taken as uniform.
    """
    model = model.to(machine.device)
    nats, tokens = score_split(model, data, "val", machine, max_tokens)
    return loss_units(nats, tokens, data.scored_bytes("val", tokens))["bits_per_byte"]


if __name__ == "__main__":
    run_stage(main)
