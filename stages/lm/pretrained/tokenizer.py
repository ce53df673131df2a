"""A pretrained model's own tokenizer.

It is in a `tokenizer.json` (the format of Hugging Face's `tokenizers`), in GPT-2's `vocab.json` and
`merges.txt`, in the metadata of a GGUF file, or in a checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import read_errors
from ..core.paths import shown
from ..text.chat import NO_CHAT, Chat
from ..text.hf_tokenizer import HFTokenizer
from ..text.interface import Tokenizer
from ..text.stored_tokenizer import load_tokenizer
from ..text.tokenizer import PATTERNS
from .files import ADAPTER_CONFIG, COPY_AGAIN, OTHER_MODEL, adapter_base, base_json, find_base
from .gguf_reader import read_gguf
from .gguf_tokenizer import byte_level_document, chat_in, tokenizer_document

PRE_OF = {"gpt2": "gpt-2", "qwen2": "qwen2", "qwen3": "qwen2"}
"""llama.cpp's name for how a folder without tokenizer.json cuts text, by the `model_type` in its
config.json."""


def base_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of the model that `init_from` names.

    Raises:
        UserError: it is missing, damaged, or of a kind that cannot be used.
    """
    path = find_base(name)
    if (path / ADAPTER_CONFIG).is_file() and not (path / "tokenizer.json").exists():
        path = adapter_base(path)
    if path.suffix == ".pt":
        return _checkpoint_tokenizer(path)
    try:
        if path.is_file():
            metadata = read_gguf(path).metadata
            document, chat = tokenizer_document(metadata), chat_in(metadata)
        else:
            document, chat = _folder_document(path), _folder_chat(path)
        return HFTokenizer(json.dumps(document), f"base {path.stem}", chat)
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{shown(path)} holds no complete vocabulary ({type(error).__name__}: {error}); copy "
            "its files there again, or set init_from to scratch."
        ) from error
    except ValueError as error:
        raise UserError(
            f"the vocabulary of {shown(path)} cannot be used: {error}; {OTHER_MODEL}"
        ) from error


def tokenizer_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    """The settings that follow from a pretrained tokenizer, by `section.key`."""
    settings = {"tokenize.tokenizer": "base", "tokenize.vocab_size": tokenizer.vocab_size}
    names = [name for name, pattern in PATTERNS.items() if pattern == tokenizer.pattern]
    return settings | ({"tokenize.pattern": names[0]} if names else {})


def _checkpoint_tokenizer(path: Path) -> Tokenizer:
    # Imports torch, which the other formats do without.
    from ..core.artifact import CHECKPOINT_FORMAT, read_artifact

    _, content = read_artifact(path, dict([CHECKPOINT_FORMAT]), COPY_AGAIN)
    try:
        return load_tokenizer(content["tokenizer"])
    except (LookupError, TypeError, AttributeError, ValueError, UserError) as error:
        raise UserError(
            f"{shown(path)} holds no complete tokenizer ({error}); {COPY_AGAIN}"
        ) from error


def _folder_document(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    if path.exists():
        document: dict[str, Any] = base_json(path)
        return document
    vocabulary = base_json(folder / "vocab.json")
    merges_file = folder / "merges.txt"
    with read_errors(merges_file, "copy it there, or the model's tokenizer.json."):
        lines = merges_file.read_text(encoding="utf-8").split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    made = {"".join(merge) for merge in merges}
    special = {name for name in vocabulary if len(name) > 1 and name not in made}
    pre = PRE_OF[base_json(folder / "config.json")["model_type"]]
    return byte_level_document(vocabulary, merges, pre, special)


def _folder_chat(folder: Path) -> Chat:
    """The chat template in `chat_template.jinja` or tokenizer_config.json, and names of tokens."""
    path, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    if not path.exists():
        return NO_CHAT
    document = base_json(path)
    template = document.get("chat_template") or ""
    if isinstance(template, list):  # several, by name
        template = {each["name"]: each["template"] for each in template}.get("default", "")
    if file.exists():
        with read_errors(file):
            template = file.read_text(encoding="utf-8")
    names = (document.get(key) or "" for key in ("bos_token", "eos_token"))
    # Older files have an object, with `content`, of each token.
    bos, eos = (name["content"] if isinstance(name, dict) else name for name in names)
    if not all(isinstance(text, str) for text in (template, bos, eos)):
        raise TypeError("its chat template or names of tokens are no text")
    return Chat(template, bos, eos)
