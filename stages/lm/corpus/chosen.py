"""Which of the user's files are learned from."""

from collections import deque
from pathlib import Path

from ..core import paths
from ..core.errors import UserError
from ..core.files import is_there, read_errors
from ..data.splits import SPLITS
from ..settings.corpus import CorpusSettings
from ..sources.files import SourceFile
from ..sources.reading import read_documents
from ..sources.survey import Survey, survey
from ..sources.tables import TABLES
from .assignment import given_split
from .corpus import Corpus
from .documents import document_corpus
from .records import record_corpus
from .texts import Text, text_corpus


def chosen_survey(settings: CorpusSettings) -> Survey | None:
    """What lies in `data/input/` or is `data/input.txt` or the like; None if there is nothing.

    Raises:
        UserError: there are both, or something cannot be read or used.
    """
    found = [survey(path, settings) for path in (*single_files(), paths.INPUT) if has_content(path)]
    found = [each for each in found if each.files]
    if len(found) > 1:
        names = " and ".join(paths.shown(each.folder) for each in found)
        raise UserError(
            f"{names} both hold something to learn from, but one model learns from one of them; "
            "move one out of data/, or both into data/input/."
        )
    return found[0] if found else None


def single_files() -> list[Path]:
    """`data/input.txt` and the like: files beside the folder `data/input/`."""
    return [path for path in sorted(paths.DATA.glob("input.*")) if path.suffix != ".dvc"]


def has_content(path: Path) -> bool:
    """Whether a path names a file that is not empty, or a folder with more than hidden files.

    Raises:
        UserError: it is a link that leads nowhere, or the system cannot tell.
    """
    if not is_there(path):
        return False
    with read_errors(path):
        if not path.is_dir():
            return path.stat().st_size > 0
        return any(each.name[0] != "." and each.suffix != ".dvc" for each in path.iterdir())


def unused() -> list[str]:
    """A line for each thing in `data/` that the pipeline does not know."""
    known = {"base", "input", *(path.name for path in single_files())}
    others = [
        paths.shown(path)
        for path in sorted(paths.DATA.iterdir())
        if path.name not in known and path.suffix != ".dvc" and not path.name.startswith(".")
    ]
    return [f"not used: {name}: what is learned belongs in data/input/" for name in others]


def corpus_of(chosen: Survey, settings: CorpusSettings, shares: dict[str, float]) -> Corpus:
    """What a survey holds, split; `shares` are those of val and test.

    Raises:
        UserError: something cannot be read, or it is too little.
    """
    if chosen.kind == "records":
        return record_corpus(chosen, shares)
    texts, lines = single_texts(chosen)
    if texts:
        return text_corpus(texts, shares, tuple(lines))
    return document_corpus(chosen, shares, settings.duplicates == "drop")


def single_texts(chosen: Survey) -> tuple[dict[str, Text], list[str]]:
    """The text for each split, where there is one file, or one for each; else empty.

    And what the user should know about them.

    Raises:
        UserError: nothing can be read of one.
    """
    files: dict[str, SourceFile] = {}
    for file in chosen.files:
        split = (given_split(file.name) if len(chosen.files) > 1 else None) or "train"
        if file.format in TABLES or split in files:
            return {}, []
        files[split] = file
    texts: dict[str, Text] = {}
    lines: list[str] = []
    if "train" not in files:
        return texts, lines
    for split in filter(files.get, SPLITS):
        file = files[split]
        alone = Survey(chosen.folder, (file,), (), chosen.settings)
        pieces = (document.text for document in read_documents(alone, lines.append))
        content: Path | bytes = file.path
        if alone.plain_text:
            deque(pieces, maxlen=0)  # only for the lines
        elif not (content := b"".join(pieces)):
            raise UserError(f"{file.shown} holds no text to learn from: {'; '.join(lines)}.")
        texts[split] = Text(file.shown, content)
    return texts, lines
