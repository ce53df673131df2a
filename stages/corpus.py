"""Stage `corpus`: makes sure there is a text to train on, and that every setting is usable.

The user's `data/input.txt` is checked and never changed. Without one, the embedded sample is
written. All sections of `params.yaml` are read here, because DVC deletes a stage's outputs before
it runs the stage: a bad setting must stop the pipeline before any model is gone.
"""

import hashlib
import shutil
from typing import Any

from stages.lm import paths
from stages.lm.base_files import download_base
from stages.lm.base_tokenizer import base_tokenizer, tokenizer_values
from stages.lm.data import split_bounds
from stages.lm.errors import UserError, run_stage
from stages.lm.files import atomic_writer, read_json, sha256_file, write_bytes, write_json
from stages.lm.sample_text import sample_text
from stages.lm.settings.evaluate import EvaluateSettings
from stages.lm.settings.init_from import SCRATCH, load_init_from
from stages.lm.settings.loader import load_sections
from stages.lm.settings.model import ModelSettings
from stages.lm.settings.quantize import QuantizeSettings
from stages.lm.settings.recipes import automatic
from stages.lm.settings.runtime import RuntimeSettings
from stages.lm.settings.tokenize import TokenizeSettings
from stages.lm.settings.train import TrainSettings

SECTIONS: list[type[Any]] = [
    TokenizeSettings,
    ModelSettings,
    TrainSettings,
    QuantizeSettings,
    EvaluateSettings,
    RuntimeSettings,
]

MIN_SPLIT_BYTES = 8
"""Less in any split is no text to learn from or to measure on."""


def main() -> None:
    """Check the settings, then the text, and record which text it is."""
    bring_text_into_experiment()
    paths.BASE.mkdir(parents=True, exist_ok=True)
    init_from = load_init_from()
    if "/" in init_from:
        download_base(init_from)
    if not paths.INPUT.exists():
        refuse_to_replace_own_text()
        write_bytes(paths.INPUT, sample_text().encode("utf-8"))
    size = paths.INPUT.stat().st_size
    auto = automatic(size, base=base_values(init_from))
    settings = load_sections(SECTIONS, auto=auto.values)
    check_text(settings["tokenize"])
    check_vocabulary(settings["tokenize"].tokenizer)
    check_other_text(settings["evaluate"].also)
    digest = sha256_file(paths.INPUT)
    is_sample = digest == hashlib.sha256(sample_or_nothing()).hexdigest()
    source = "sample" if is_sample else "own"
    record = {"source": source, "bytes": size, "sha256": digest, "init_from": init_from}
    record |= {"recipe": auto.recipe, "auto": auto.chosen()}
    write_json(paths.CORPUS_METRICS, record)
    print(f"text: data/input.txt, {size:,} bytes ({source})")


def refuse_to_replace_own_text() -> None:
    """Where the record says that the text is the user's own, the sample must not stand in for it.

    Raises:
        UserError: so it is.
    """
    if not paths.CORPUS_METRICS.exists():
        return
    recorded = read_json(paths.CORPUS_METRICS)
    if isinstance(recorded, dict) and recorded.get("source") == "own":
        raise UserError(
            "data/input.txt is missing, and metrics/corpus.json says that this project trains on "
            f"a text of its own ({recorded.get('bytes')} bytes, sha256 "
            f"{str(recorded.get('sha256'))[:12]}...). Put that text back, or another one; to train "
            "on the embedded sample instead, remove metrics/corpus.json."
        )


def sample_or_nothing() -> bytes:
    """The sample, or nothing where its source is not installed and so cannot be compared."""
    try:
        return sample_text().encode("utf-8")
    except UserError:
        return b""


def bring_text_into_experiment() -> None:
    """In an experiment's own copy of the project, fetch the workspace's text and base files.

    Git does not track them, so DVC leaves them behind.
    """
    origin = paths.experiment_origin()
    if origin is None:
        return
    for source in (origin / "data" / "input.txt", *(origin / "data" / "base").rglob("*")):
        if source.is_file():
            copy_to = paths.ROOT / source.relative_to(origin)
            with source.open("rb") as original, atomic_writer(copy_to) as copy:
                shutil.copyfileobj(original, copy)


def check_text(settings: TokenizeSettings) -> None:
    """Refuse a text that no model can be trained on.

    Raises:
        UserError: it is not a file, empty, blank, or too short to be split.
    """
    if not paths.INPUT.is_file():
        raise UserError("data/input.txt is not a file; put your text there as one plain file.")
    size = paths.INPUT.stat().st_size
    with paths.INPUT.open("rb") as file:
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


def base_values(name: str) -> dict[str, Any]:
    """What the weights to start from decide of the settings, after a look at each of them.

    Raises:
        UserError: they cannot be used.
    """
    if name == SCRATCH:
        return {}
    from stages.lm.base import Base  # imports torch, which takes seconds

    base, (tokenizer, _) = Base.open(name), base_tokenizer(name)
    base.shape(tokenizer.vocab_size, base.config.context, dropout=0.0)
    for _ in base.tensors():
        pass
    return base.values() | tokenizer_values(tokenizer)


def check_other_text(name: str) -> None:
    """Refuse an `evaluate.also` that is no text in `data/base/`.

    Raises:
        UserError: so it is.
    """
    sizes = {path.name: path.stat().st_size for path in paths.BASE.glob("*") if path.is_file()}
    if name and sizes.get(name, 0) < MIN_SPLIT_BYTES:
        raise UserError(
            f"params.yaml: evaluate.also is {name!r}, but data/base/ holds no text of that name "
            f"with at least {MIN_SPLIT_BYTES} bytes; put it there, or leave evaluate.also empty."
        )


def check_vocabulary(name: str) -> None:
    """Refuse a vocabulary file that is not there.

    Raises:
        UserError: so it is.
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
