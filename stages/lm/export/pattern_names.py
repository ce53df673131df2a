"""llama.cpp's names for the ways in which text is cut before BPE merging.

Other programs know these ways by name only; a model that cuts otherwise cannot be exported.
"""

from ..core.errors import UserError
from ..pretrained.gguf_tokenizer import PATTERN_OF_PRE, SINGLE_DIGITS
from ..text.hf_tokenizer import HFTokenizer
from ..text.interface import Tokenizer
from ..text.tokenizer import PATTERNS

PUBLISHED = {
    "gpt2": "gpt-2",
    "r50k_base": "gpt-2",
    "p50k_base": "gpt-2",
    "cl100k_base": "llama-bpe",
    "o200k_base": "gpt-4o",
}
"""tiktoken vocabularies whose pattern is equivalent to one of `PATTERNS`, but written otherwise."""
DIGITS = "each digit"


def pattern_name(tokenizer: Tokenizer) -> str:
    """The key of `PATTERN_OF_PRE` for how this tokenizer cuts text.

    Raises:
        UserError: there is none.
    """
    if tokenizer.name in PUBLISHED:
        return PUBLISHED[tokenizer.name]
    cuts = cuts_of(tokenizer) if isinstance(tokenizer, HFTokenizer) else [tokenizer.pattern]
    # The first of equal ones: each pattern's own name.
    for name in [*PATTERNS, *PATTERN_OF_PRE]:
        digits = [DIGITS] if name in SINGLE_DIGITS else []
        if cuts == [*digits, PATTERNS[PATTERN_OF_PRE[name]]]:
            return name
    raise UserError(
        f"the model's vocabulary {tokenizer.name} splits text by {' and '.join(cuts)[:80]!r}, "
        "which other programs have no name for, so it cannot be exported; train with "
        f"tokenize.pattern set to one of {', '.join(PATTERNS)}."
    )


def cuts_of(tokenizer: HFTokenizer) -> list[str]:
    """The patterns by which a tokenizer.json cuts text, one after the other."""
    cuts = []
    for part in tokenizer.parts("pre_tokenizer"):
        if part["type"] == "Split":
            cuts.append(str(part["pattern"].get("Regex")))
        elif part["type"] == "ByteLevel" and part.get("use_regex", True):
            cuts.append(PATTERNS["gpt-2"])
        elif part["type"] != "ByteLevel":
            cuts.append(DIGITS if part.get("individual_digits") else part["type"])
    return cuts
