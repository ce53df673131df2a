"""The top-level key `init_from` of `params.yaml`: the weights that training begins with."""

import re
from pathlib import Path

from ..core.errors import UserError
from ..core.paths import PARAMS
from .loader import quoted, read_params

SCRATCH = "scratch"

_NAME = re.compile(r"\w[\w.-]{,95}(/\w[\w.-]{,95})?", re.ASCII)


def load_init_from(path: Path = PARAMS) -> str:
    """`scratch`, or the name of the weights to start from.

    The name is that of a folder in `data/base/` with a model in Hugging Face's format, of a GGUF
    file there, which ends in `.gguf`, or of one of our own checkpoints, which ends in `.pt`. A name
    with a slash, such as `Qwen/Qwen3-0.6B`, is a public model, which `corpus` downloads into such a
    folder once.

    Raises:
        UserError: the key is missing or is none of these.
    """
    document = read_params(path)
    value = document.get("init_from")
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    state = f"is {quoted(value)}" if "init_from" in document else "is missing"
    raise UserError(
        f"{path.name}: init_from {state}, but must be scratch, the name of a folder, a .gguf or a "
        ".pt file in data/base/, or a public model's name with its owner, such as Qwen/Qwen3-0.6B."
    )
