"""The `corpus:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """Which columns (of a table) or keys (of JSON) hold what is learned, and what is left out."""

    SECTION: ClassVar[str] = "corpus"

    text: str
    """The column whose cells are documents. `auto`: `text`, `content`, or the only one."""

    prompt: str
    """The column of a record's prompt. `auto`: see `stages/lm/sources/FORMATS.md`."""

    completion: str
    """The column of a record's completion; without `prompt`, prompts are empty. `auto`: see
    `stages/lm/sources/FORMATS.md`."""

    duplicates: Annotated[str, Choice(("keep", "drop"))]
    """What becomes of documents that equal an earlier one, or nearly do. Equal ones are in the same
    split in any case. Of equal records one is kept."""

    def __post_init__(self) -> None:
        if self.text != "auto" and (self.prompt, self.completion) != ("auto", "auto"):
            raise ValueError(
                f"corpus.text is {self.text!r} and corpus.prompt or corpus.completion is set too, "
                "but a file holds texts or records; set the others to auto."
            )
        if self.prompt != "auto" and self.completion == "auto":
            raise ValueError(
                f"corpus.prompt is {self.prompt!r} but corpus.completion is auto; name that column "
                "too."
            )


AUTO = CorpusSettings(text="auto", prompt="auto", completion="auto", duplicates="keep")
"""Those that `params.yaml` is shipped with."""
