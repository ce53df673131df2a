"""The files of pretrained models in `data/base/`, downloaded once or put there by hand.

Finds, downloads and digests them; `config.py`, `model.py` and `tokenizer.py` read their contents.
"""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from ..core import paths
from ..core.errors import UserError
from ..core.files import read_errors, read_json, sha256_file, write_errors
from ..core.paths import shown
from ..settings.loader import quoted

CHECKPOINT, GGUF = ".pt", ".gguf"
"""How the names of a checkpoint and of a GGUF file end; other models are folders."""
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WANTED = (
    *(CONFIG, WEIGHTS, INDEX, "model-*-of-*.safetensors"),
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "chat_template.jinja"),
)
"""Files to download of a public model: no pickles and no code."""

OTHER_MODEL = "take another model, or set init_from to scratch."
"""The remedy for a model that cannot be used."""
COPY_AGAIN = "copy it there again, or set init_from to scratch."
"""The remedy for a damaged file of it."""

REQUIRED = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "modules_to_save": None,
    "trainable_token_indices": None,
}
"""Values that are merged here. A missing key has the same value, as these are PEFT's defaults."""

_SHARD = re.compile(r"\w[\w.-]{,200}\.safetensors", re.ASCII)


def base_path(name: str) -> Path:
    """The folder or file that `init_from` names; for `Qwen/Qwen3-0.6B`, `Qwen--Qwen3-0.6B`."""
    return paths.BASE / name.replace("/", "--")


def find_base(name: str) -> Path:
    """`base_path`, which must exist.

    Raises:
        UserError: it does not, or the system cannot tell.
    """
    path = base_path(name)
    with read_errors(path):
        if path.is_file() if path.suffix in (CHECKPOINT, GGUF) else path.is_dir():
            return path
    there = sorted(each.name for each in paths.BASE.glob("[!.]*") if _is_candidate(each))
    raise UserError(
        f"params.yaml: init_from is {name!r}, but {shown(path)} is missing; data/base/ holds "
        f"{', '.join(there) or 'no folder, .gguf file or .pt file'}. Put the weights there, or "
        "set init_from to scratch."
    )


def _is_candidate(path: Path) -> bool:
    return path.is_dir() or path.suffix in (CHECKPOINT, GGUF)


def download_base(name: str) -> None:
    """Download a public model into `base_path`, unless that exists; completely or not at all.

    Raises:
        UserError: there is no network, no such model, or no space on the disk.
    """
    folder = base_path(name)
    if folder.is_dir():
        return
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    part = folder.with_name(f".{folder.name}.part")
    print(f"downloading {name} into {shown(folder)}")
    try:
        snapshot_download(name, local_dir=part, allow_patterns=list(WANTED))
    except Exception as error:  # three libraries' errors, without a common class
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
    """The files that hold the weights: a file itself, or the safetensors of a folder.

    A folder has one file, or several that an index lists in its `weight_map` (tensor -> file).

    Raises:
        UserError: there is none, or one that the index lists is missing.
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
            "damaged. Copy it there again."
        ) from None
    for file in files:
        if not file.is_file():
            raise UserError(f"{shown(file)} is missing, but {INDEX} lists it; copy it there.")
    return files


def base_json(path: Path) -> Any:
    """The value in a JSON file of a pretrained model.

    Raises:
        UserError: the file is missing, cannot be read, or is not JSON.
    """
    return read_json(path, missing=COPY_AGAIN, remedy=COPY_AGAIN)


def base_digest(path: Path, adapter: Path | None) -> str:
    """SHA-256 over the names and contents of the weight files and the `config.json` of a folder.

    Those of the `adapter`'s folder are included.
    """
    files = weight_files(path)
    if path.is_dir():
        files = [path / CONFIG, *files]
    if adapter:
        files += [adapter / ADAPTER_CONFIG, adapter / ADAPTER_WEIGHTS]
    listed = "".join(f"{sha256_file(file)} {file.name}\n" for file in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def adapter_base(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to, in `data/base/` too.

    Raises:
        UserError: it is not there.
    """
    name = adapter_config(folder)["base_model_name_or_path"]
    if isinstance(name, str) and name:
        for path in (base_path(name), paths.BASE / name.rstrip("/").rsplit("/", 1)[-1]):
            if path.name.strip(".") and path != folder and path.is_dir():
                return path
    raise UserError(
        f"{shown(folder)} holds adapters of {quoted(name)}, but data/base/ does not hold that "
        "model; put its folder there, under the last part of this name."
    )


def adapter_config(folder: Path) -> dict[str, Any]:
    """What a folder of adapters says of them.

    Raises:
        UserError: they are of a kind that cannot be merged.
    """
    path = folder / ADAPTER_CONFIG
    document = base_json(path)
    if not isinstance(document, dict) or "base_model_name_or_path" not in document:
        raise UserError(f"{shown(path)} does not describe adapters; {COPY_AGAIN}")
    for key, needed in REQUIRED.items():
        if (document.get(key) or needed) != needed:
            raise UserError(
                f"{shown(path)}: {key} is {quoted(document[key])}, but must be {quoted(needed)}; "
                f"merge the adapters with PEFT, or {OTHER_MODEL}"
            )
    return document
