"""Stage `quantize`: `checkpoint.pt` -> `trained_model_quantized.pt`, and what it cost."""

from stages.lm import paths
from stages.lm.checkpoint import Checkpoint, build_model
from stages.lm.data import TokenData
from stages.lm.errors import run_stage
from stages.lm.files import write_json
from stages.lm.metrics import loss_units
from stages.lm.model import Transformer
from stages.lm.quantization import quantize_checkpoint
from stages.lm.runtime import Machine, pick_machine
from stages.lm.scoring import score
from stages.lm.settings.loader import load_section
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.runtime import RuntimeSettings


def main() -> None:
    """Quantize, measure what it cost on the validation split, report sizes."""
    settings = load_section(QuantizeSettings)
    machine = pick_machine(load_section(RuntimeSettings))
    data = TokenData.load(paths.TOKENS)
    checkpoint = Checkpoint.load(paths.CHECKPOINT)
    before = val_bits_per_byte(checkpoint.build(), data, machine)
    quantized = quantize_checkpoint(checkpoint, settings.scheme)
    quantized.save(paths.QUANTIZED)
    restored = build_model(quantized.config, quantized.dequantized())
    after = val_bits_per_byte(restored, data, machine)
    figures = {
        "scheme": settings.scheme,
        "val_bits_per_byte": after,
        "delta_bits_per_byte": round(after - before, 6),
        "bits_per_weight": round(quantized.bits_per_weight(), 3),
        "file_bytes": paths.QUANTIZED.stat().st_size,
        "checkpoint_bytes": paths.CHECKPOINT.stat().st_size,
    }
    write_json(paths.QUANTIZE_METRICS, figures)
    rows = [
        ("checkpoint", figures["checkpoint_bytes"], 32.0, before),
        (settings.scheme, figures["file_bytes"], figures["bits_per_weight"], after),
    ]
    print(f"{'weights':<12}{'file':>14}{'bits/weight':>13}{'val bits/byte':>15}")
    for name, size, bits, loss in rows:
        print(f"{name:<12}{size:>12,} B{bits:>13.2f}{loss:>15.4f}")


def val_bits_per_byte(model: Transformer, data: TokenData, machine: Machine) -> float:
    """Loss on the whole validation split, each window scored from its first token."""
    lead = data.preceding("val", model.config.context)
    nats, tokens = score(model.to(machine.device), data.val, lead, machine)
    return loss_units(nats, tokens, data.meta["splits"]["val"]["bytes"])["bits_per_byte"]


if __name__ == "__main__":
    run_stage(main)
