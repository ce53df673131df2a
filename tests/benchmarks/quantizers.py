"""Every scheme of `quantize` on one trained model, beside PyTorch's dynamic quantization.

    python tests/benchmarks/quantizers.py models/checkpoint.pt data/tokens
    python tests/benchmarks/quantizers.py ... --q4-0-bytes 2345678 --q4-0-increase 0.0004

Bytes are those of a whole file; a share is of 4 bytes a parameter. Loss is over all of val, and
over val and test together (held-out), each window scored from its first token; an increase is over
float32. `torch dynamic` is `torch.ao.quantization.quantize_dynamic` of every linear layer, saved
as its users save it. llama.cpp's Q4_0 is measured elsewhere and given on the command line: its
file, and the share of bits per byte that it loses on the same text.
"""

import argparse
import io
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from stages.lm.data.dataset import TokenData
from stages.lm.inference.loading import load_model
from stages.lm.model.attention import KVCache
from stages.lm.model.checkpoint import Checkpoint
from stages.lm.model.metrics import loss_units
from stages.lm.model.runtime import Machine
from stages.lm.model.scoring import score
from stages.lm.model.transformer import Transformer
from stages.quantize import RATES, Trials

DECODED = 100
"""Tokens decoded one by one to measure the speed."""


class HeadedTransformer(nn.Module):
    """The model with its head as a layer that is called, so that PyTorch can quantize it."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        weight = model.get_parameter(
            ("token_embedding" if model.config.tie_embeddings else "head") + ".weight"
        )
        self.projection = nn.Linear(weight.size(1), weight.size(0), bias=False)
        self.projection.weight = nn.Parameter(weight.detach(), requires_grad=False)
        # Its own head is read, never called: the identity gives out what would enter it.
        model.head = nn.Linear(weight.size(1), 1, bias=False)

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, vocab_size), as `Transformer` gives them."""
        x = self.model.hidden(tokens, cache)
        return self.projection(self.model.final_norm(x))[..., : self.config.vocab_size]


def bits_per_byte(model: nn.Module, data: TokenData, splits: tuple[str, ...]) -> float:
    """Bits per byte over all of `splits`."""
    machine = Machine(torch.device("cpu"), "float32", torch.get_num_threads())
    nats, count, size = 0.0, 0, 0
    for split in splits:
        lead = data.preceding(split, model.config.context)
        more = score(model, getattr(data, split), lead, machine)
        nats, count = nats + more[0], count + more[1]
        size += data.meta.splits[split].bytes
    return loss_units(nats, count, size)["bits_per_byte"]


@torch.inference_mode()
def decoding_ms(model: nn.Module) -> float:
    """Milliseconds per token, the best of five runs of up to `DECODED` tokens."""
    count = min(DECODED, model.config.context - 1)
    times = []
    for _ in range(5):
        cache = KVCache(model.config, 1, torch.empty(0))
        begun = time.perf_counter()
        for token in range(count):
            model(torch.tensor([[token % model.config.vocab_size]]), cache)
        times.append(time.perf_counter() - begun)
    return 1000 * min(times) / count


def dynamic(model: Transformer) -> tuple[nn.Module, int]:
    """The model as PyTorch quantizes it, and the bytes of its file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        quantized = torch.ao.quantization.quantize_dynamic(
            HeadedTransformer(model).eval(), {nn.Linear}, dtype=torch.qint8
        )
        file = io.BytesIO()
        torch.save(quantized.state_dict(), file)
    return quantized, len(file.getvalue())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("--schemes", nargs="*", help="of ours; default: all")
    parser.add_argument("--q4-0-bytes", type=int, help="llama.cpp's Q4_0 file")
    parser.add_argument("--q4-0-increase", type=float, help="its increase, 0.01 is 1 %%")
    asked = parser.parse_args()
    data, checkpoint = TokenData.load(asked.tokens), Checkpoint.load(asked.checkpoint)
    machine = Machine(torch.device("cpu"), "float32", torch.get_num_threads())
    trial = Trials(checkpoint, data, machine, 0.005)
    parameters = checkpoint.build().parameter_count()
    held_out = ("val", "test")
    before = [bits_per_byte(checkpoint.build(), data, splits) for splits in (("val",), held_out)]
    print(f"{parameters:,} parameters; float32: val {before[0]:.4f}, held-out {before[1]:.4f}")
    print(
        f"{'scheme':<14}{'bytes':>12}{'bits/weight':>13}{'of 4 bytes':>12}"
        f"{'val':>9}{'':>9}{'held-out':>11}{'':>9}"
    )

    def row(name: str, size: int, model: nn.Module) -> None:
        losses = [bits_per_byte(model, data, splits) for splits in (("val",), held_out)]
        cells = "".join(
            f"{loss:>10.4f}{100 * (loss / old - 1):>+8.3f}%"
            for loss, old in zip(losses, before, strict=True)
        )
        share = size / (4 * parameters)
        print(
            f"{name:<14}{size:>12,}{8 * size / parameters:>13.3f}{share:>12.4f}{cells}", flush=True
        )

    ladder = [f"gptq{rate:g}" for rate in RATES[4::2]]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantized.pt"
        for scheme in asked.schemes or [*ladder, "int4", "int8", "f16"]:
            trial.quantized(scheme).save(path)
            begun = time.perf_counter()
            loaded = load_model(path)
            took = time.perf_counter() - begun
            row(scheme, loaded.file_bytes, loaded.model)
    print(f"the last file was read in {1000 * took:.0f} ms")
    ours, size = checkpoint.build(), 0
    theirs, size = dynamic(checkpoint.build())
    row("torch dynamic", size, theirs)
    speeds = decoding_ms(theirs), decoding_ms(ours), decoding_ms(theirs), decoding_ms(ours)
    print(
        f"PyTorch's, token by token: torch dynamic {min(speeds[::2]):.2f} ms, "
        f"float32 {min(speeds[1::2]):.2f} ms a token"
    )
    if asked.q4_0_bytes:
        print(
            f"{'llama.cpp Q4_0':<14}{asked.q4_0_bytes:>12,}"
            f"{8 * asked.q4_0_bytes / parameters:>13.3f}"
            f"{asked.q4_0_bytes / (4 * parameters):>12.4f}"
            + (f"   {100 * asked.q4_0_increase:+.3f}%" if asked.q4_0_increase is not None else "")
        )


if __name__ == "__main__":
    main()
