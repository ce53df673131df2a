"""Stage `corpus`: checks what is learned from, and every setting; writes `metrics/corpus.json`.

The user's files in `data/` are never changed. Without any, the embedded sample is learned. All
sections of `params.yaml` are checked here, because DVC deletes a stage's outputs before it runs the
stage: a bad setting must stop the pipeline before any model is deleted.
"""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.corpus`")

import os
import shutil
from itertools import chain
from pathlib import Path
from typing import Any

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import (
    atomic_writer,
    is_there,
    read_errors,
    read_json,
    write_errors,
    write_json,
)
from stages.lm.core.inputs import FileVersions
from stages.lm.core.stage import run_stage
from stages.lm.corpus.chosen import chosen_survey, corpus_of, unused
from stages.lm.corpus.corpus import Corpus
from stages.lm.corpus.texts import MIN_SPLIT_BYTES
from stages.lm.pretrained.files import download_base
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.corpus import CorpusSettings
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_sections
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.recipes import BY_LENGTH, automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.settings.train import TrainSettings
from stages.sample_text import SAMPLE_BYTES, SAMPLE_SHA256, check_source

SECTIONS: list[type[Any]] = [
    CorpusSettings,
    TokenizeSettings,
    ModelSettings,
    TrainSettings,
    QuantizeSettings,
    EvaluateSettings,
    RuntimeSettings,
]
SAMPLE = "sample"
"""The `source` of the sample in `metrics/corpus.json`; else it is the corpus' kind."""


def bring() -> None:
    """Bring what `data/` lacks: in an experiment the workspace's files, and a public model."""
    bring_data_into_experiment()
    with write_errors(paths.DATA):
        for folder in (paths.INPUT, paths.BASE):
            if not is_there(folder):
                folder.mkdir(parents=True)
    init_from = load_init_from()
    if "/" in init_from:
        download_base(init_from)


def main() -> None:
    """Check the settings, then what is learned from, and write down what it is."""
    base = base_settings(load_init_from())
    # All but the values that depend on the size, before anything long is read.
    settings = load_sections(SECTIONS, auto=automatic(0, base=base).values)
    check_vocabulary(settings["tokenize"].tokenizer)
    check_other_text(settings["evaluate"].also)
    corpus = chosen_corpus(settings["corpus"], settings["tokenize"])
    size = corpus.bytes if corpus else SAMPLE_BYTES
    auto = automatic(size, base=base)
    load_sections(SECTIONS, auto=auto.values)
    record: dict[str, Any] = {"source": corpus.kind if corpus else SAMPLE, "bytes": size}
    record["sha256"] = corpus.sha256 if corpus else SAMPLE_SHA256
    if corpus and corpus.counts:
        record |= {corpus.kind: corpus.counts} | corpus.figures
    chosen = auto.chosen(without=BY_LENGTH if corpus and corpus.counts else ())
    record |= {"init_from": load_init_from(), "recipe": auto.recipe, "auto": chosen}
    write_json(paths.CORPUS_METRICS, record)


def chosen_corpus(settings: CorpusSettings, splitting: TokenizeSettings) -> Corpus | None:
    """What is learned from, after telling what it is; None of the sample.

    Raises:
        UserError: it cannot be read or split, or what this project trained on is missing.
    """
    chosen = chosen_survey(settings)
    for line in (*(chosen.lines if chosen else ()), *unused()):
        print(line)
    if chosen is None:
        refuse_to_replace_own_data()
        check_source()
        print(f"text: the embedded sample, {SAMPLE_BYTES:,} bytes; yours belongs in data/input/")
        return None
    corpus = corpus_of(chosen, settings, splitting.fractions())
    for line in corpus.lines:
        print(line)
    counts = ", ".join(f"{split} {count:,}" for split, count in corpus.counts.items())
    print(
        f"{corpus.kind}: {paths.shown(chosen.folder)}, {corpus.bytes:,} bytes"
        f"{f' ({counts})' if counts else ''}"
    )
    return corpus


def refuse_to_replace_own_data() -> None:
    """Refuse to train on the sample where this project has trained on data of the user's own.

    Raises:
        UserError: `metrics/corpus.json` says that it has, or cannot be read.
    """
    if not is_there(paths.CORPUS_METRICS):
        return
    recorded = read_json(
        paths.CORPUS_METRICS,
        remedy="it would say whether this project trains on data of its own. Put those back into "
        "data/, or restore this file, for example with `git checkout metrics/corpus.json`.",
    )
    source = recorded.get("source") if isinstance(recorded, dict) else SAMPLE
    if source != SAMPLE:
        raise UserError(
            "data/ holds nothing to learn from, and metrics/corpus.json says that this project "
            f"trains on {source} of its own ({recorded.get('bytes')} bytes, sha256 "
            f"{str(recorded.get('sha256'))[:12]}...). Put them back (`dvc pull`, if DVC has them), "
            "or others; to train on the embedded sample instead, remove metrics/corpus.json."
        )


def bring_data_into_experiment() -> None:
    """In DVC's copy of the project for an experiment, bring what neither git nor DVC put there.

    What one of them tracks is as it was when the experiment was queued; all else is as it is now.
    """
    origin = paths.experiment_origin()
    if origin is None or not is_there(origin / "data"):
        return
    entries = sorted((origin / "data").iterdir())
    # A link to nothing stands for something: it is not passed over.
    for source in chain(*(files_under(e) if e.is_dir() else [e] for e in entries)):
        target = paths.ROOT / source.relative_to(origin)
        of_tools = source.suffix == ".dvc" or source.name == ".gitignore"
        if not (of_tools or is_there(target) or tracked_by_dvc(target)):
            copy_file(source, target)


def tracked_by_dvc(path: Path) -> bool:
    """Whether `dvc add` tracks a file in `data/`, or a folder that it is in."""
    inside = [path, *path.parents][: len(path.relative_to(paths.ROOT).parts) - 1]
    return any(each.with_name(f"{each.name}.dvc").is_file() for each in inside)


def files_under(folder: Path) -> list[Path]:
    """The files in a folder and in those below it. Links are followed.

    Raises:
        UserError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found, entered = [], set()
    with read_errors(folder):
        for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
            if (real := os.path.realpath(place)) in entered:  # a link to a folder around it
                folders.clear()
                continue
            entered.add(real)
            found += [path for name in names if (path := Path(place, name)).is_file()]
    return found


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all.

    Raises:
        UserError: it cannot be read, or changes meanwhile.
    """

    version = FileVersions([source])
    with atomic_writer(target) as copy:
        with read_errors(source, "put it back."), source.open("rb") as original:
            shutil.copyfileobj(original, copy)
        version.check()


def base_settings(name: str) -> dict[str, Any]:
    """The settings that the weights to start from fix, after checking that all can be read.

    Raises:
        UserError: they cannot be used.
    """
    if name == SCRATCH:
        return {}
    from stages.lm.pretrained.model import PretrainedModel  # imports torch, which takes seconds

    base, tokenizer = PretrainedModel.open(name), base_tokenizer(name)
    base.config_for(tokenizer.vocab_size, base.config.context, dropout=0.0)
    for _ in base.tensors():
        pass
    return base.fixed_settings() | tokenizer_settings(tokenizer)


def check_other_text(name: str) -> None:
    """Check `evaluate.also`.

    Raises:
        UserError: `data/base/` has no such text, or it is too short.
    """
    sizes = {path.name: path.stat().st_size for path in paths.BASE.glob("*") if path.is_file()}
    if name and sizes.get(name, 0) < MIN_SPLIT_BYTES:
        raise UserError(
            f"params.yaml: evaluate.also is {name!r}, but data/base/ holds no text of that name "
            f"with at least {MIN_SPLIT_BYTES} bytes; put it there, or leave evaluate.also empty."
        )


def check_vocabulary(name: str) -> None:
    """Check a `tokenize.tokenizer` that names a file.

    Raises:
        UserError: `data/base/` has no such file.
    """
    there = [path.name for path in paths.BASE.glob("*.tiktoken")]
    if name.endswith(".tiktoken") and name not in there:
        raise UserError(
            f"params.yaml: tokenize.tokenizer is {name!r}, but data/base/ holds "
            f"{', '.join(there) or 'no .tiktoken file'}; put the vocabulary there, or set "
            "tokenize.tokenizer to bpe."
        )


if __name__ == "__main__":
    run_stage(main, first=bring)
