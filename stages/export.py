"""`python -m stages.export FOLDER`: a model as files for other programs."""

if not __package__:
    raise SystemExit("error: start it in the project's folder, as `python -m stages.export`")

import importlib.util
import shutil
from pathlib import Path

import torch

from stages.lm.core import paths
from stages.lm.core.errors import UserError
from stages.lm.core.files import dangling_link, temporary_name, write_errors
from stages.lm.core.stage import Parser, run_stage
from stages.lm.export.adapter import write_adapter
from stages.lm.export.gguf_file import KINDS, tokenizer_model, write_gguf
from stages.lm.export.huggingface import write_huggingface
from stages.lm.export.modelfile import write_modelfile
from stages.lm.export.pattern_names import pattern_name
from stages.lm.inference.loading import LoadedModel, load_model

GGUF = {f"gguf-{kind}": kind for kind in KINDS}
FORMATS = ("huggingface", "adapter", *GGUF)
CHECK_TEXT = "It's a test: 12345 Wölfe, привет, 我们 🙂\n\n\t  the end ... "
"""Default text for the comparison of logits with transformers."""
GPT_4O_NOTE = (
    "note: llama.cpp's version of the pattern gpt-4o splits combining marks (of Hindi, of "
    "decomposed accents) from their letters, so text with such marks gets other token ids there."
)
UNIGRAM_NOTE = (
    "note: for unigram vocabularies, llama.cpp puts a space more before text that begins with one, "
    "and takes characters that the vocabulary spells in bytes for unknown ones."
)
TOLERANCE = 1e-3
"""Largest absolute difference of logits; float32 rounds to about a millionth of them."""


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(prog="python -m stages.export", description="Write a model for other programs.")
    made.add_argument("folder", type=Path, help="a folder that does not exist yet or is empty")
    made.add_argument(
        "--format",
        nargs="+",
        choices=FORMATS,
        default=["huggingface", "gguf-f16"],
        help="one or several of %(choices)s (huggingface and gguf-f16)",
    )
    made.add_argument(
        "--model",
        type=Path,
        default=paths.CHECKPOINT,
        help=f"a model file ({paths.shown(paths.CHECKPOINT)}), or {paths.shown(paths.QUANTIZED)}",
    )
    made.add_argument("--check", default=CHECK_TEXT, help="a text to compare the logits on")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Write the folder, completely or not at all."""
    asked = parser().parse_args(arguments)
    folder = asked.folder.absolute()
    with write_errors(folder):
        if link := dangling_link(folder):
            raise UserError(f"{paths.shown(link)} is a link to nothing; name another folder.")
        folder = folder.resolve()  # an empty one that a link leads to is taken itself
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{paths.shown(folder)} exists and is not empty; name another folder.")
    loaded = load_model(asked.model)
    partial = temporary_name(folder)
    with write_errors(folder):
        partial.mkdir(parents=True)
        try:
            write(loaded, partial, asked.format)
            if "huggingface" in asked.format:
                print(compare(loaded, partial, asked.check or CHECK_TEXT))
            if folder.exists():
                folder.rmdir()
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            print(f"{paths.shown(file)}: {file.stat().st_size:,} bytes")
    if GGUF.keys() & asked.format:
        kind = tokenizer_model(loaded.tokenizer)
        if kind == "t5":
            print(UNIGRAM_NOTE)
        elif kind == "gpt2" and pattern_name(loaded.tokenizer) == "gpt-4o":
            print(GPT_4O_NOTE)


def write(loaded: LoadedModel, folder: Path, formats: list[str]) -> None:
    """Write each format into a folder.

    Adapters get a folder inside it: transformers would load their base instead of what is beside.
    """
    if "huggingface" in formats:
        write_huggingface(loaded, folder)
    if "adapter" in formats:
        (folder / "adapter").mkdir()
        write_adapter(loaded, folder / "adapter")
    kinds = [GGUF[name] for name in dict.fromkeys(formats) if name in GGUF]
    for kind in kinds:
        write_gguf(loaded, folder / f"model-{kind}.gguf", kind)
    if kinds:
        write_modelfile(loaded, folder, [f"model-{kind}.gguf" for kind in kinds])


@torch.inference_mode()
def compare(loaded: LoadedModel, folder: Path, text: str) -> str:
    """Compare transformers' token ids and logits for a written folder with ours, in a sentence.

    Raises:
        UserError: they differ, or transformers cannot read the folder.
    """
    if importlib.util.find_spec("transformers") is None:
        return "not compared with transformers, which is not installed"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    ids = loaded.opening + loaded.tokenizer.encode(text.encode("utf-8", "replace"))
    ids = ids[: loaded.config.context]
    rows = torch.tensor([ids])
    try:
        same = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][: len(ids)] == ids
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(rows).logits
    except ValueError as error:
        raise UserError(
            f"the export was not kept: the installed transformers cannot read it ({error})."
        ) from error
    ours = loaded.model(rows)
    difference, largest = (theirs - ours).abs().max().item(), ours.abs().max().item()
    result = (
        f"on {len(ids)} tokens, transformers' logits differ by at most {difference:.1e} (the "
        f"largest is {largest:.1f})"
    )
    if not same or not difference < TOLERANCE:
        raise UserError(
            f"the export is wrong and was not kept: {result}, and its token ids "
            f"{'are the same' if same else 'differ'}; the installed transformers may be too old."
        )
    return f"{result}; token ids are the same"


if __name__ == "__main__":
    run_stage(main)
