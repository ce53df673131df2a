"""The embedded sample: English prose from a pinned dependency, for a first run offline.

It is the docstrings of networkx, which torch depends on anyway: pure Python, so the same bytes on
every platform. They are read with `ast`; networkx is never imported.
"""

import ast
import hashlib
import importlib.util
from importlib.metadata import version
from pathlib import Path

from stages.lm.core.errors import UserError

SOURCE = "networkx"
VERSION = "3.6.1"
SAMPLE_BYTES = 2_005_993
SAMPLE_SHA256 = "cbf0929936123da6e7182ee4164725194566536bba6b0ca061f46ad3a50da66e"
"""Of the sample, which takes 5 s to make."""


def check_source() -> Path:
    """The folder of the package that the sample comes from.

    Raises:
        UserError: networkx is missing, or another version than the pinned one is installed.
    """
    spec = importlib.util.find_spec(SOURCE)
    if spec is None or not spec.submodule_search_locations or version(SOURCE) != VERSION:
        found = f"version {version(SOURCE)}" if spec else "none"
        raise UserError(
            f"there is no text in data/input/, and the sample comes from {SOURCE} {VERSION}, but "
            f"{found} is installed. Run `pip install -r requirements.txt`, or put your own text "
            "into data/input/."
        )
    return Path(spec.submodule_search_locations[0])


def sample_text() -> str:
    """Every distinct docstring of networkx, about 2 MB, always the same.

    Docstrings are in the order of their SHA-256, so that the held-out end of the sample is of the
    same kind as its beginning.

    Raises:
        UserError: networkx is missing, or another version than the pinned one is installed.
    """
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    texts = set()
    for file in check_source().rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, documented) and (text := ast.get_docstring(node)):
                texts.add(text)
    return (
        "\n\n".join(sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest())) + "\n"
    )
