"""Stage `evaluate`: both models on all held-out data -> `metrics/evaluate.json`, `samples.md`.

Models of a text or of documents: loss, compressors on the same bytes, and how much of the samples
is copied from the training text. Models of records: loss of the completions, and the share of exact
answers.
"""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.evaluate`")

from dataclasses import replace
from typing import Any

from tqdm import tqdm

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import read_json, write_json, write_text
from stages.lm.core.stage import run_stage
from stages.lm.data.dataset import TokenData
from stages.lm.data.token_text import TokenText
from stages.lm.evaluation.adaptive import adaptive_losses
from stages.lm.evaluation.compressors import WINDOW_BYTES, baselines
from stages.lm.evaluation.exact_match import answer, exact_match, majority, questions_in
from stages.lm.evaluation.held_out import (
    SPLITS,
    ScoredPart,
    completion_losses,
    file_losses,
    scored_part,
    text_losses,
)
from stages.lm.evaluation.memorization import COMPARED_BYTES, copied_shares
from stages.lm.evaluation.samples_page import answers_page, samples_page
from stages.lm.inference.generation import SamplingSettings, generate_steps
from stages.lm.inference.loading import LoadedModel, load_model
from stages.lm.model.checkpoint import build_model
from stages.lm.model.runtime import Machine, pick_machine
from stages.lm.pretrained.model import PretrainedModel
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_section
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.text.interface import Tokenizer


def main() -> None:
    """Evaluate the float and the quantized model, and the one that training started from."""
    settings = load_section(EvaluateSettings)
    machine = pick_machine(load_section(RuntimeSettings))
    data = TokenData.load(paths.TOKENS)
    models = load_models(machine)
    evaluate = evaluate_records if data.records else evaluate_text
    results = evaluate(models, data, machine, settings)
    if settings.also:
        path = paths.BASE / settings.also
        results["also"] = file_losses(models, path, machine, settings)
    results["quantization"] = quantization_figures(results)
    for name in ("float", "quantized"):
        results[name] = {"model": models[name].id} | results[name]
    write_json(paths.EVALUATE_METRICS, results)
    report_losses("held-out", {name: results[name]["held_out"] for name in models})
    if adaptive := results.get("adaptive"):
        by_model = {name: adaptive[name]["held_out"] for name in ("float", "quantized")}
        report_losses("held-out, adaptive", by_model)
    report_losses(settings.also, results.get("also", {}))
    if data.records:
        report_answers(models, results)
    else:
        report_text(results)


def load_models(machine: Machine) -> dict[str, LoadedModel]:
    """The models by their name in the results: `float`, `quantized` and, if any, `start`."""
    models = {
        "float": load_model(paths.CHECKPOINT, machine.device),
        "quantized": load_model(paths.QUANTIZED, machine.device),
    }
    init_from = load_init_from()
    if init_from != SCRATCH:
        models["start"] = starting_model(init_from, models["float"], machine)
    return models


def starting_model(name: str, trained: LoadedModel, machine: Machine) -> LoadedModel:
    """The pretrained model that `trained` started from, in the configuration of `trained`.

    Raises:
        UserError: `init_from` has changed since.
    """
    config, base = trained.config, PretrainedModel.open(name)
    if trained.provenance.get("base_sha256") != base.digest():
        raise UserError(
            f"params.yaml: init_from is {name!r}, but {paths.shown(paths.CHECKPOINT)} did not "
            "start from these weights; run `dvc repro`, which trains again."
        )
    weights = base.state_dict(config)
    return replace(trained, build=lambda: build_model(config, weights).to(machine.device))


def evaluate_text(
    models: dict[str, LoadedModel], data: TokenData, machine: Machine, settings: EvaluateSettings
) -> dict[str, Any]:
    """The results for models of a text or of documents; writes `metrics/samples.md`."""
    tokenizer = models["float"].tokenizer
    parts = {split: scored_part(data, split, tokenizer, settings.max_bytes) for split in SPLITS}
    results: dict[str, Any] = {
        name: text_losses(loaded, data, parts, machine, settings.min_context, name)
        for name, loaded in models.items()
    }
    training = TokenText(data.train, tokenizer.tokens)
    results["baselines"] = compressor_figures(training, parts, tokenizer)
    if settings.cache:
        trained = {name: models[name] for name in ("float", "quantized")}
        asked = (machine, settings.min_context, settings.cache)
        results["adaptive"] = adaptive_losses(trained, data, parts, *asked)
    samples, ended = draw_samples(models["quantized"], settings)
    held_out = b"".join(
        TokenText(getattr(data, s), tokenizer.tokens).read(0, COMPARED_BYTES) for s in SPLITS
    )
    held_out = held_out[:COMPARED_BYTES]
    results["memorisation"] = copied_shares(training.blocks(), held_out, samples)
    if data.documents:
        results["ended_share"] = ended
    write_text(paths.SAMPLES, samples_page(samples, settings))
    return results


def evaluate_records(
    models: dict[str, LoadedModel], data: TokenData, machine: Machine, settings: EvaluateSettings
) -> dict[str, Any]:
    """The results for models of records; writes `metrics/samples.md`."""
    tokenizer = models["float"].tokenizer
    parts = (data.train, data.val, data.test)
    training, val, test = (questions_in(tokens, tokenizer) for tokens in parts)
    held_out = val + test
    count = min(settings.max_records, len(held_out))
    asked = [held_out[i * len(held_out) // count] for i in range(count)]
    results: dict[str, Any] = {}
    for name, loaded in models.items():
        losses = completion_losses(loaded, data, machine)
        bar = tqdm(asked, desc=f"answers {name}", unit="record")
        results[name] = losses | {"exact_match": exact_match(loaded, bar)}
    results["asked_records"] = count
    share = majority([q.completion for q in training], [q.completion for q in asked])
    if share is not None:
        results["majority"] = share
    answers = [
        (question, answer(models["quantized"], question, settings.sample_tokens))
        for question in asked[: settings.samples]
    ]
    write_text(paths.SAMPLES, answers_page(answers))
    return results


def compressor_figures(
    training: TokenText, parts: dict[str, ScoredPart], tokenizer: Tokenizer
) -> dict[str, float]:
    """Bits per byte of general-purpose compressors on the bytes that the models are scored on."""
    seen = training.read(max(0, training.size - WINDOW_BYTES), WINDOW_BYTES)
    texts = [TokenText(part.tokens, tokenizer.tokens) for part in parts.values()]
    return baselines(seen, b"".join(text.read(0, text.size) for text in texts))


def draw_samples(loaded: LoadedModel, settings: EvaluateSettings) -> tuple[list[bytes], float]:
    """The texts that a model generates after `evaluate.prompt`, without the prompt and their ends.

    And the share of them that end by themselves.
    """
    sampling = SamplingSettings(
        temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p
    )
    asked = (settings.prompt, settings.sample_tokens, sampling, settings.seed)
    samples, ended = [b""] * settings.samples, 0
    if samples:
        rows = generate_steps(loaded, *asked, range(settings.samples))
        for row in tqdm(rows, total=settings.sample_tokens, desc="samples", unit="token"):
            for index, step in enumerate(row):
                if step:
                    samples[index] += step.data
                    ended += step.token in loaded.tokenizer.control
    return samples, round(ended / max(1, len(samples)), 4)


def quantization_figures(results: dict[str, Any]) -> dict[str, float]:
    """The increase of the loss by quantization, and the sizes of both files."""
    before, after = (results[name]["held_out"]["bits_per_byte"] for name in ("float", "quantized"))
    return {
        "delta_bits_per_byte": round(after - before, 6),
        "file_bytes": paths.QUANTIZED.stat().st_size,
        "checkpoint_bytes": paths.CHECKPOINT.stat().st_size,
        "bits_per_weight": read_json(paths.QUANTIZE_METRICS)["bits_per_weight"],
    }


def report_losses(data_name: str, losses: dict[str, dict[str, float]]) -> None:
    """Print the loss of each model on the same data."""
    for name, loss in losses.items():
        print(
            f"{name:<10} {data_name}: {loss['loss']:.4f} nats/token, "
            f"{loss['nats_per_byte']:.4f} nats/byte, {loss['bits_per_byte']:.4f} bits/byte"
        )


def report_answers(models: dict[str, LoadedModel], results: dict[str, Any]) -> None:
    """Print the shares of exact answers."""
    shares = [f"{name} {100 * results[name]['exact_match']:.1f} %" for name in models]
    if "majority" in results:
        shares.append(f"always the most frequent completion {100 * results['majority']:.1f} %")
    print(f"exact answers of {results['asked_records']:,} held-out records: {', '.join(shares)}")


def report_text(results: dict[str, Any]) -> None:
    """Print the compressors' figures and the shares of copied text."""
    copied = results["memorisation"]
    if "ended_share" in results:
        print(f"samples that end by themselves: {100 * results['ended_share']:.0f} %")
    print(
        "compressors, bits/byte: " + ", ".join(f"{k} {v}" for k, v in results["baselines"].items())
    )
    print(
        f"copied from the training text in spans of {copied['span_bytes']} bytes or more: "
        f"{100 * copied['copied_share']:.1f} % of the samples "
        f"(held-out text itself: {100 * copied['held_out_copied_share']:.1f} %)"
    )


if __name__ == "__main__":
    run_stage(main)
