"""Stage `evaluate`: both models on all held-out data -> `metrics/evaluate.json`, `samples.md`."""

from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError, run_stage
from stages.lm.core.files import read_json, write_json, write_text
from stages.lm.data.dataset import TokenData
from stages.lm.data.splits import read_chunks
from stages.lm.evaluation.compressors import WINDOW_BYTES, baselines
from stages.lm.evaluation.exact_match import answer, exact_match, majority
from stages.lm.evaluation.memorization import SPAN_BYTES, copied_bytes, read_blocks
from stages.lm.evaluation.samples_page import answers_page, samples_page
from stages.lm.inference.generation import SamplingSettings, generate_steps
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import build_model
from stages.lm.model.metrics import loss_units
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.model.scoring import score, score_split
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.text.records import records_in

HELD_OUT = ("val", "test")
COMPARED_BYTES = 1_000_000
"""Held-out text that is searched for in the training text, at most."""


def main() -> None:
    """Score the float and the quantized model and write samples. Those of a text are compared with
    compressors and looked for in the training text, those of records with the right answers.
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
    results = (on_records if data.records else on_text)(models, data, machine, settings)
    if settings.also:
        results["also"] = evaluate_also(models, machine, settings)
    results["quantization"] = quantization_figures(results)
    write_json(paths.EVALUATE_METRICS, results)
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
    if data.records:
        report_answers(models, results)
    else:
        report_text(results)


def on_text(
    models: dict[str, LoadedModel], data: TokenData, machine: Machine, settings: EvaluateSettings
) -> dict[str, Any]:
    """What `metrics/evaluate.json` holds of models of a text; writes `metrics/samples.md`."""
    parts = {split: scored_part(data, split, models["float"], settings) for split in HELD_OUT}
    results: dict[str, Any] = {
        name: evaluate(loaded, data, parts, machine, settings, name)
        for name, loaded in models.items()
    }
    results["baselines"] = compressor_figures(data, parts)
    samples = sampled(models["quantized"], settings)
    results["memorisation"] = memorisation(data, samples)
    write_text(paths.SAMPLES, samples_page(samples, settings))
    return results


def on_records(
    models: dict[str, LoadedModel], data: TokenData, machine: Machine, settings: EvaluateSettings
) -> dict[str, Any]:
    """The same of models of records: loss of the completions, and how many are answered exactly."""
    decode = models["float"].tokenizer.decode
    training = records_in(decode(data.train))
    held_out = records_in(decode(data.val)) + records_in(decode(data.test))
    count = min(settings.max_records, len(held_out))
    asked = [held_out[place * len(held_out) // count] for place in range(count)]
    results: dict[str, Any] = {}
    for name, loaded in models.items():
        scored = {}
        for split in HELD_OUT:
            nats, tokens = score_split(loaded.model, data, split, machine)
            scored[split] = nats, tokens, data.scored_bytes(split, tokens)
        bar = tqdm(asked, desc=f"answers {name}", unit="record")
        results[name] = loss_figures(scored) | {"exact_match": exact_match(loaded, bar)}
    results["asked_records"] = count
    share = majority(training, asked)
    results |= {} if share is None else {"majority": share}
    told = [
        (record, answer(models["quantized"], record.prompt, settings.sample_tokens))
        for record in asked[: settings.samples]
    ]
    write_text(paths.SAMPLES, answers_page(told))
    return results


def report_answers(models: dict[str, LoadedModel], results: dict[str, Any]) -> None:
    """Print how many records are answered exactly."""
    shares = [f"{name} {100 * results[name]['exact_match']:.1f} %" for name in models]
    if "majority" in results:
        shares.append(f"the likeliest completion {100 * results['majority']:.1f} %")
    print(f"exact answers of {results['asked_records']:,} held-out records: {', '.join(shares)}")


def report_text(results: dict[str, Any]) -> None:
    """Print what the loss stands beside."""
    copied = results["memorisation"]
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
    config, base = trained.config, PretrainedModel.open(name)
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
    size = data.meta.splits[split].bytes
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
) -> dict[str, Any]:
    """The four units of loss on val, test and both together (sums over sums)."""
    scored = {}
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
            scored[split] = nats, count, float(size)
    return loss_figures(scored)


def loss_figures(scored: dict[str, tuple[float, int, float]]) -> dict[str, Any]:
    """The four units of loss by split, and of all together, from nats, tokens and bytes."""
    figures = {split: loss_units(*sums) for split, sums in scored.items()}
    nats, tokens, size = map(sum, zip(*scored.values(), strict=True))
    return figures | {"held_out": loss_units(nats, int(tokens), size)}


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
    start = 0
    texts = {}
    with paths.INPUT.open("rb") as file:
        for split, meta in data.meta.splits.items():
            wanted = meta.bytes if split == "train" else parts[split][1]
            skipped = max(0, wanted - WINDOW_BYTES) if split == "train" else 0
            file.seek(start + skipped)
            texts[split] = file.read(wanted - skipped)
            start += meta.bytes
    return baselines(texts["train"], texts["val"] + texts["test"])


def sampled(loaded: LoadedModel, settings: EvaluateSettings) -> list[bytes]:
    """What a model writes after the prompt at a fixed seed, byte for byte."""
    sampling = SamplingSettings(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )
    asked = (settings.prompt, settings.sample_tokens, sampling, settings.seed)
    samples = [b""] * settings.samples
    if samples:
        rows = generate_steps(loaded, *asked, range(settings.samples))
        for row in tqdm(rows, total=settings.sample_tokens, desc="samples", unit="token"):
            samples = [text + step.data for text, step in zip(samples, row, strict=True) if step]
    return samples


def memorisation(data: TokenData, samples: list[bytes]) -> dict[str, float]:
    """Which share of the samples stands word for word in the training text.

    Writers repeat themselves too: the share of the held-out text is what to compare with.
    """
    train = data.meta.splits["train"].bytes
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


if __name__ == "__main__":
    run_stage(main)
