"""`python -m stages.export FOLDER`: a model in the formats that other programs open."""

import argparse
import importlib.util
import shutil
from pathlib import Path
from typing import NoReturn

import torch

from stages.lm.core import paths
from stages.lm.core.errors import UserError, run_stage
from stages.lm.core.files import explained
from stages.lm.export.gguf_file import KINDS, write_gguf
from stages.lm.export.huggingface import write_huggingface
from stages.lm.export.pattern_names import pattern_name
from stages.lm.inference.loading import LoadedModel, load_model

FORMATS = ("huggingface", *(f"gguf-{kind}" for kind in KINDS))
CHECKED = "It's a test: 12345 Wölfe, привет, 我们 🙂\n\n\t  the end ... "
"""What transformers reads to see that it gives the same logits, unless another text is given."""
GPT_4O = (
    "note: the pattern gpt-4o as llama.cpp has it cuts combining marks (of Hindi, of decomposed "
    "accents) off their letters; text with such marks gets other token ids there."
)
TOLERANCE = 1e-3
"""Logits that differ by more are another model's; float32 rounds to about a millionth of them."""


class Parser(argparse.ArgumentParser):
    """Tells a wrong argument in one sentence instead of a usage listing."""

    def error(self, message: str) -> NoReturn:
        """Raise it."""
        raise UserError(f"{message}. `python -m stages.export --help` explains every argument.")


def parser() -> Parser:
    """The arguments."""
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
    made.add_argument("--check", default=CHECKED, help="a text to compare the logits on")
    return made


def main(arguments: list[str] | None = None) -> None:
    """Write the folder, whole or not at all."""
    asked = parser().parse_args(arguments)
    folder = asked.folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{paths.shown(folder)} exists and is not empty; name another folder.")
    loaded = load_model(asked.model)
    # Named alike every time, so that what a killed run left is overwritten by the next one.
    partial = folder.with_name(f".{folder.name}.tmp")
    with explained(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            write(loaded, partial, asked.format)
            if "huggingface" in asked.format:
                print(compared(loaded, partial, asked.check or CHECKED))
            if folder.exists():
                folder.rmdir()
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if asked.format != ["huggingface"] and pattern_name(loaded.tokenizer) == "gpt-4o":
        print(GPT_4O)
    for file in sorted(folder.iterdir()):
        print(f"{paths.shown(file)}: {file.stat().st_size:,} bytes")


def write(loaded: LoadedModel, folder: Path, formats: list[str]) -> None:
    """Write each format into a folder."""
    for name in dict.fromkeys(formats):
        if name == "huggingface":
            write_huggingface(loaded, folder)
        else:
            kind = name.removeprefix("gguf-")
            write_gguf(loaded, folder / f"model-{kind}.gguf", kind)


@torch.inference_mode()
def compared(loaded: LoadedModel, folder: Path, text: str) -> str:
    """A sentence on how far what transformers makes of a folder is from the model.

    Raises:
        UserError: it makes something else of it.
    """
    if importlib.util.find_spec("transformers") is None:
        return "not compared with transformers, which is not installed"
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    ids = loaded.tokenizer.encode(text.encode("utf-8", "replace"))[: loaded.config.context]
    same = AutoTokenizer.from_pretrained(folder)(text)["input_ids"][: len(ids)] == ids
    rows = torch.tensor([ids])
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(rows).logits
    ours = loaded.model(rows)
    apart, largest = (theirs - ours).abs().max().item(), ours.abs().max().item()
    told = (
        f"on {len(ids)} tokens, transformers' logits differ by at most {apart:.1e} (the largest is "
        f"{largest:.1f})"
    )
    if not same or not apart < TOLERANCE:
        raise UserError(
            f"the export is wrong and was not kept: {told}, and its token ids are "
            f"{'the same' if same else 'others'}; the installed transformers may be too old."
        )
    return f"{told}; token ids are the same"


if __name__ == "__main__":
    run_stage(main)
