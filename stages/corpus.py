"""Stage `corpus`: checks the text or the records, and every setting; writes `metrics/corpus.json`.

The user's `data/input.txt` or `data/input.jsonl` is never changed. Without either, the embedded
sample is written to `data/input.txt`. The file that is not used is left empty, because DVC wants
both to exist. All sections of `params.yaml` are checked here, because DVC deletes a stage's outputs
before it runs the stage: a bad setting must stop the pipeline before any model is deleted.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import (
    atomic_writer,
    is_there,
    read_errors,
    read_json,
    sha256_file,
    write_bytes,
    write_errors,
    write_json,
)
from stages.lm.core.inputs import FileVersions
from stages.lm.core.stage import run_stage
from stages.lm.data.splits import split_bounds
from stages.lm.pretrained.files import download_base
from stages.lm.pretrained.tokenizer import base_tokenizer, tokenizer_settings
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_sections
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.recipes import automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.settings.train import TrainSettings
from stages.lm.text.records import read_records, split_records
from stages.sample_text import SAMPLE_SHA256, sample_text

SECTIONS: list[type[Any]] = [
    TokenizeSettings,
    ModelSettings,
    TrainSettings,
    QuantizeSettings,
    EvaluateSettings,
    RuntimeSettings,
]

OWN = {"own": ("data/input.txt", "a text"), "records": ("data/input.jsonl", "records")}
"""The user's file and what it holds, by the `source` in `metrics/corpus.json`."""
MIN_SPLIT_BYTES = 8
"""A split with less is refused: there is nothing to learn from it or to measure on it."""


def main() -> None:
    """Check the settings, then the text or the records, and write down which they are."""
    bring_text_into_experiment()
    if not size_of(paths.BASE):
        with write_errors(paths.BASE):
            paths.BASE.mkdir(parents=True, exist_ok=True)
    init_from = load_init_from()
    if "/" in init_from:
        download_base(init_from)
    used = choose_data()
    files = FileVersions([used, paths.BASE])
    size = size_of(used)
    auto = automatic(size, base=base_settings(init_from))
    settings = load_sections(SECTIONS, auto=auto.values)
    from_records = used == paths.RECORDS
    (check_records if from_records else check_text)(settings["tokenize"])
    check_vocabulary(settings["tokenize"].tokenizer)
    check_other_text(settings["evaluate"].also)
    unused = paths.INPUT if from_records else paths.RECORDS
    if size_of(unused) or not is_there(unused):  # it holds the sample at most
        write_bytes(unused, b"")
    digest = sha256_file(used)
    source = "records" if from_records else "sample" if digest == SAMPLE_SHA256 else "own"
    record = {"source": source, "bytes": size, "sha256": digest, "init_from": init_from}
    record |= {"recipe": auto.recipe, "auto": auto.chosen()}
    write_json(paths.CORPUS_METRICS, record)
    what = "records" if from_records else "text"
    print(f"{what}: {paths.shown(used)}, {size:,} bytes ({source})")
    files.check()


def choose_data() -> Path:
    """The file to train on: the records, the text, or the sample where there is neither.

    Raises:
        UserError: there are both, one is not a file, or what this project trained on is missing.
    """
    for path in (paths.INPUT, paths.RECORDS):
        size_of(path)  # refuses a link that leads nowhere, which the sample would replace
        if path.exists() and not path.is_file():
            raise UserError(f"{paths.shown(path)} is not a file; put one plain file there.")
    if size_of(paths.RECORDS):
        text = paths.INPUT  # a link was made by the user, whatever it leads to
        if size_of(text) and (text.is_symlink() or sha256_file(text) != SAMPLE_SHA256):
            raise UserError(
                "data/input.jsonl holds records and data/input.txt holds a text of yours, but one "
                "model learns from one of them; move the other out of data/."
            )
        return paths.RECORDS
    if not size_of(paths.INPUT):
        refuse_to_replace_own_data()
        if not is_there(paths.INPUT):
            write_bytes(paths.INPUT, sample_text().encode("utf-8"))
    return paths.INPUT


def size_of(path: Path) -> int:
    """Bytes of a file; 0 where there is none.

    Raises:
        UserError: it is a link that leads nowhere, or the system cannot tell.
    """
    if not is_there(path):
        return 0
    with read_errors(path):
        return path.stat().st_size


def refuse_to_replace_own_data() -> None:
    """Refuse to write the sample where this project has trained on data of the user's own.

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
    source = recorded.get("source") if isinstance(recorded, dict) else None
    if source in OWN:
        name, what = OWN[source]
        raise UserError(
            f"{name} is missing or empty, and metrics/corpus.json says that this project trains on "
            f"{what} of its own ({recorded.get('bytes')} bytes, sha256 "
            f"{str(recorded.get('sha256'))[:12]}...). Put them back, or others; to train on the "
            "embedded sample instead, remove metrics/corpus.json and data/input.txt."
        )


def bring_text_into_experiment() -> None:
    """In DVC's copy of the project for an experiment, fetch the workspace's data and base files.

    Git does not track them, so DVC does not copy them.
    """
    origin = paths.experiment_origin()
    if origin is None:
        return
    data = origin / "data"
    files = [path for path in (data / "input.txt", data / "input.jsonl") if is_there(path)]
    files += files_under(data / "base") if is_there(data / "base") else []
    for source in files:
        copy_file(source, paths.ROOT / source.relative_to(origin))


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


def check_records(settings: TokenizeSettings) -> None:
    """Read the records and print how many each split has.

    Raises:
        UserError: a line is no record, or there are too few for three splits.
    """
    records = read_records(paths.RECORDS)
    splits = split_records(records, settings.val_fraction, settings.test_fraction)
    counts = ", ".join(f"{split} {len(part):,}" for split, part in splits.items())
    print(f"{len(records):,} different records: {counts}")


def check_text(settings: TokenizeSettings) -> None:
    """Refuse a text that no model can be trained on.

    Raises:
        UserError: it is empty, blank, or too short to be split.
    """
    size = size_of(paths.INPUT)
    with read_errors(paths.INPUT), paths.INPUT.open("rb") as file:
        if not any(block.strip() for block in iter(lambda: file.read(1 << 20), b"")):
            what = "is empty" if size == 0 else f"holds {size} bytes of nothing but white space"
            raise UserError(f"data/input.txt {what}; put the text to learn from into it.")
    bounds = split_bounds(size, settings.val_fraction, settings.test_fraction)
    name, part = min(bounds.items(), key=lambda item: len(item[1]))
    if len(part) < MIN_SPLIT_BYTES:
        raise UserError(
            f"data/input.txt holds {size:,} bytes, which leaves {len(part)} for the {name} split "
            f"and {MIN_SPLIT_BYTES} are needed; use a longer text, or raise "
            "tokenize.val_fraction and tokenize.test_fraction."
        )


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
    run_stage(main)
