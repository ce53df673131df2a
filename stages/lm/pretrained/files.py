"""Where the weights to start from lie: in `data/base/`, downloaded once or brought by hand.

Knows which files there are and their digest, not what is in them.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from ..core import paths
from ..core.errors import UserError
from ..core.files import read_json, sha256_file, write_errors
from ..core.paths import shown

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
WANTED = (
    *(CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors"),
    *("tokenizer.json", "vocab.json", "merges.txt"),
)
"""What is downloaded of a public model: nothing that has to be unpickled or run."""

REMEDY = "take another model, or set init_from to scratch."
"""What a user does about a model that cannot be used."""
_SHARD = re.compile(r"\w[\w.-]*\.safetensors", re.ASCII)


def base_path(name: str) -> Path:
    """Where the weights that `init_from` names lie; `Qwen/Qwen3-0.6B` in `Qwen--Qwen3-0.6B`."""
    return paths.BASE / name.replace("/", "--")


def find_base(name: str) -> Path:
    """`base_path`, if something is there.

    Raises:
        UserError: nothing is.
    """
    path = base_path(name)
    if path.is_file() if path.suffix == ".pt" else path.is_dir():
        return path
    there = sorted(each.name for each in paths.BASE.glob("[!.]*") if _may_be_base(each))
    raise UserError(
        f"params.yaml: init_from is {name!r}, but {shown(path)} is not there; data/base/ holds "
        f"{', '.join(there) or 'no folder and no .pt file'}. Put the weights there, or set "
        "init_from to scratch."
    )


def _may_be_base(path: Path) -> bool:
    return path.is_dir() or path.suffix == ".pt"


def download_base(name: str) -> None:
    """Fetch a public model into `base_path`, whole or not at all; what is there stays.

    Raises:
        UserError: there is no network, no such model, or no room.
    """
    folder = base_path(name)
    if folder.is_dir():
        return
    from huggingface_hub import snapshot_download  # takes a second, and is hardly ever needed

    part = folder.with_name(f".{folder.name}.part")
    print(f"downloading {name} into {shown(folder)}")
    try:
        snapshot_download(name, local_dir=part, allow_patterns=list(WANTED))
    except Exception as error:  # its own, its network library's and the system's have no common one
        raise UserError(
            f"params.yaml: init_from is {name!r}, which could not be downloaded "
            f"({type(error).__name__}: {str(error)[:200]}). Run the same command again to go on, "
            f"or bring its {CONFIG}, {WEIGHTS} and tokenizer.json (or vocab.json and merges.txt) "
            f"into {shown(folder)} by hand."
        ) from error
    with write_errors(folder):
        shutil.rmtree(part / ".cache", ignore_errors=True)
        part.rename(folder)


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a base: itself, or those of a Hugging Face folder.

    Raises:
        UserError: the folder has none.
    """
    if path.is_file():
        return [path]
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if not (path / INDEX).is_file():
        raise UserError(
            f"{shown(path)} holds neither {WEIGHTS} nor {INDEX}; bring the weights in that format "
            "(others can run code when they are read), or set init_from to scratch."
        )
    try:
        names = set(base_json(path / INDEX)["weight_map"].values())
        files = [path / name for name in sorted(names) if _SHARD.fullmatch(name)]
        if not files or len(files) < len(names):
            raise ValueError
    except (LookupError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{shown(path / INDEX)} does not say which files of its folder hold the weights; it is "
            "damaged. Bring it again."
        ) from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{shown(file)} is missing, but {INDEX} names it; bring every part.")
    return files


def base_json(path: Path) -> Any:
    """The value in a JSON file of a base.

    Raises:
        UserError: it is missing or is not JSON.
    """
    try:
        return read_json(path)
    except UserError:
        state = "is not readable as JSON" if path.exists() else "is missing"
        raise UserError(
            f"{shown(path)} {state}; bring that file of the model again, or set init_from to "
            "scratch."
        ) from None


def base_digest(path: Path) -> str:
    """SHA-256 over the names and the bytes of all that the weights are read from."""
    files = weight_files(path)
    if path.is_dir():
        files = [path / CONFIG, *files]
    listed = "".join(f"{sha256_file(file)} {file.name}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()
