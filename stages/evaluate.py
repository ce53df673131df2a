"""Stage `evaluate`: both models on all held-out text -> `metrics/evaluate.json`, `samples.md`."""

from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.lm import paths
from stages.lm.base import Base
from stages.lm.checkpoint import build_model
from stages.lm.compressors import WINDOW_BYTES, baselines
from stages.lm.copying import SPAN_BYTES, copied_bytes, read_blocks
from stages.lm.data import TokenData, read_chunks
from stages.lm.errors import UserError, run_stage
from stages.lm.files import read_json, write_json, write_text
from stages.lm.loading import LoadedModel, load_model
from stages.lm.metrics import loss_units
from stages.lm.runtime import Machine, pick_machine
from stages.lm.sampling import SamplingSettings, steps
from stages.lm.scoring import score
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.runtime import RuntimeSettings

HELD_OUT = ("val", "test")
COMPARED_BYTES = 1_000_000
"""Held-out text that is searched for in the training text, at most."""


def main() -> None:
    """Score the float and the quantized model, compare with compressors, write samples and look
    for them in the training text.
    """
    settings = load_section(EvaluateSettings)
    machine = pick_machine(load_section(RuntimeSettings))
    data = TokenData.load(paths.TOKENS)
    models = {
        "float": load_model(paths.CHECKPOINT, machine.device),
        "quantized": load_model(paths.QUANTIZED, machine.device),
    }
    init_from = load_init_from()
    if init_from != SCRATCH:
        models["start"] = starting_model(init_from, models["float"], machine)
    parts = {split: scored_part(data, split, models["float"], settings) for split in HELD_OUT}
    results: dict[str, Any] = {
        name: evaluate(loaded, data, parts, machine, settings, name)
        for name, loaded in models.items()
    }
    if settings.also:
        results["also"] = evaluate_also(models, machine, settings)
    results["quantization"] = quantization_figures(results)
    results["baselines"] = compressor_figures(data, parts)
    samples = sampled(models["quantized"], settings)
    results["memorisation"] = copied = memorisation(data, samples)
    write_json(paths.EVALUATE_METRICS, results)
    write_samples(samples, settings)
    for name in models:
        figures = results[name]["held_out"]
        print(
            f"{name:<10} held-out: {figures['loss']:.4f} nats/token, "
            f"{figures['nats_per_byte']:.4f} nats/byte, {figures['bits_per_byte']:.4f} bits/byte"
        )
    for name, figures in results.get("also", {}).items():
        print(
            f"{name:<10} {settings.also}: {figures['loss']:.4f} nats/token, "
            f"{figures['nats_per_byte']:.4f} nats/byte, {figures['bits_per_byte']:.4f} bits/byte"
        )
    print(
        "compressors, bits/byte: " + ", ".join(f"{k} {v}" for k, v in results["baselines"].items())
    )
    print(
        f"copied from the training text in spans of {copied['span_bytes']} bytes or more: "
        f"{100 * copied['copied_share']:.1f} % of the samples "
        f"(held-out text itself: {100 * copied['held_out_copied_share']:.1f} %)"
    )


def starting_model(name: str, trained: LoadedModel, machine: Machine) -> LoadedModel:
    """The model that training began with, in the shape of the one it led to.

    Raises:
        UserError: `init_from` names other weights by now.
    """
    config, base = trained.config, Base.open(name)
    if trained.provenance.get("base_sha256") != base.digest():
        raise UserError(
            f"params.yaml: init_from is {name!r}, but {paths.shown(paths.CHECKPOINT)} did not "
            "start from these weights; run `dvc repro`, which trains again."
        )
    weights = base.weights(config)
    return replace(trained, build=lambda: build_model(config, weights).to(machine.device))


def evaluate_also(
    models: dict[str, LoadedModel], machine: Machine, settings: EvaluateSettings
) -> dict[str, dict[str, float]]:
    """The four units of loss on the text `evaluate.also`, whose first token is context alone."""
    path = paths.BASE / settings.also
    size = min(path.stat().st_size, settings.max_bytes)
    tokenizer = models["float"].tokenizer
    chunks = [tokenizer.encode(chunk) for chunk in read_chunks(path, range(size))]
    tokens = np.concatenate([np.array(ids, np.uint32) for ids in chunks])
    first, tokens = tokens[:1], tokens[1:]
    if not len(tokens):
        raise UserError(f"data/base/{settings.also} is one token long; use a longer evaluate.also.")
    size -= len(tokenizer.tokens[first[0]])
    return {
        name: loss_units(
            *score(loaded.model, tokens, first, machine, min_context=settings.min_context), size
        )
        for name, loaded in models.items()
    }


def scored_part(
    data: TokenData, split: str, loaded: LoadedModel, settings: EvaluateSettings
) -> tuple[np.ndarray, int]:
    """The tokens of a split that lie within `evaluate.max_bytes`, at least one, and their bytes."""
    tokens = getattr(data, split)
    size = data.meta["splits"][split]["bytes"]
    if size <= settings.max_bytes:
        return tokens, size
    lengths = np.array([len(token) for token in loaded.tokenizer.tokens])
    ends = np.cumsum(lengths[tokens[: settings.max_bytes]])
    count = max(1, int(np.searchsorted(ends, settings.max_bytes, side="right")))
    return tokens[:count], int(ends[count - 1])


def evaluate(
    loaded: LoadedModel,
    data: TokenData,
    parts: dict[str, tuple[np.ndarray, int]],
    machine: Machine,
    settings: EvaluateSettings,
    name: str,
) -> dict[str, dict[str, float]]:
    """The four units of loss on val, test and both together (sums over sums)."""
    figures, sums = {}, np.zeros(3)
    total = sum(len(tokens) for tokens, _ in parts.values())
    with tqdm(total=total, desc=f"evaluate {name}", unit="token", unit_scale=True) as bar:
        for split, (tokens, size) in parts.items():
            lead = data.preceding(split, loaded.model.config.context)
            nats, count = score(
                loaded.model,
                tokens,
                lead,
                machine,
                min_context=settings.min_context,
                progress=bar.update,
            )
            figures[split] = loss_units(nats, count, size)
            sums += (nats, count, size)
    figures["held_out"] = loss_units(sums[0], int(sums[1]), int(sums[2]))
    return figures


def quantization_figures(results: dict[str, Any]) -> dict[str, float]:
    """What quantization cost and saved."""
    before, after = (results[name]["held_out"]["bits_per_byte"] for name in ("float", "quantized"))
    return {
        "delta_bits_per_byte": round(after - before, 6),
        "file_bytes": paths.QUANTIZED.stat().st_size,
        "checkpoint_bytes": paths.CHECKPOINT.stat().st_size,
        "bits_per_weight": read_json(paths.QUANTIZE_METRICS)["bits_per_weight"],
    }


def compressor_figures(
    data: TokenData, parts: dict[str, tuple[np.ndarray, int]]
) -> dict[str, float]:
    """Bits per byte of general compressors on the same held-out bytes."""
    sizes = {split: data.meta["splits"][split]["bytes"] for split in data.meta["splits"]}
    start = 0
    texts = {}
    with paths.INPUT.open("rb") as file:
        for split, size in sizes.items():
            wanted = size if split == "train" else parts[split][1]
            skipped = max(0, wanted - WINDOW_BYTES) if split == "train" else 0
            file.seek(start + skipped)
            texts[split] = file.read(wanted - skipped)
            start += size
    return baselines(texts["train"], texts["val"] + texts["test"])


def sampled(loaded: LoadedModel, settings: EvaluateSettings) -> list[bytes]:
    """What a model writes after the prompt at a fixed seed, byte for byte."""
    sampling = SamplingSettings(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )
    asked = (settings.prompt, settings.sample_tokens, sampling, settings.seed)
    samples = [b""] * settings.samples
    if samples:
        rows = steps(loaded, *asked, range(settings.samples))
        for row in tqdm(rows, total=settings.sample_tokens, desc="samples", unit="token"):
            samples = [text + step.data for text, step in zip(samples, row, strict=True) if step]
    return samples


def memorisation(data: TokenData, samples: list[bytes]) -> dict[str, float]:
    """Which share of the samples stands word for word in the training text.

    Writers repeat themselves too: the share of the held-out text is what to compare with.
    """
    train = data.meta["splits"]["train"]["bytes"]
    with paths.INPUT.open("rb") as file:
        file.seek(train)
        held_out = file.read(COMPARED_BYTES)
    training = read_blocks(paths.INPUT, train)
    *copied, copied_held_out = copied_bytes([*samples, held_out], training)
    size = sum(len(sample) for sample in samples)
    return {
        "span_bytes": SPAN_BYTES,
        "sampled_bytes": size,
        "copied_share": round(sum(copied) / max(1, size), 4),
        "held_out_copied_share": round(copied_held_out / len(held_out), 4),
    }


def write_samples(samples: list[bytes], settings: EvaluateSettings) -> None:
    """The texts of the quantized model as Markdown."""
    lines = [
        "# Samples",
        "",
        f"From `{paths.shown(paths.QUANTIZED)}`: temperature {settings.temperature:g}, top-k "
        f"{settings.top_k}, top-p {settings.top_p:g}, seed {settings.seed}.",
    ]
    for number, sample in enumerate(samples, 1):
        text = settings.prompt + sample.decode("utf-8", "replace")
        # Indented, a sample is a code block whatever characters it holds.
        shown = "".join(f"    {line}\n" for line in text.splitlines())
        lines += ["", f"## Sample {number}", "", shown.rstrip("\n")]
    write_text(paths.SAMPLES, "\n".join(lines) + "\n")


if __name__ == "__main__":
    run_stage(main)
