"""llama.cpp's names for the regular expressions that split text before BPE merging.

Other programs know these patterns by name only; a model with another pattern cannot be exported.
"""

from ..core.errors import UserError
from ..text.tokenizer import PATTERNS, Tokenizer

PUBLISHED = {
    "gpt2": "gpt-2",
    "r50k_base": "gpt-2",
    "p50k_base": "gpt-2",
    "cl100k_base": "llama-bpe",
    "o200k_base": "gpt-4o",
}
"""tiktoken vocabularies whose pattern is equivalent to one of `PATTERNS`, but written otherwise."""


def pattern_name(tokenizer: Tokenizer) -> str:
    """The key of `PATTERNS` whose pattern splits text as this tokenizer does.

    Raises:
        UserError: there is none.
    """
    for name, pattern in PATTERNS.items():
        if tokenizer.pattern == pattern or PUBLISHED.get(tokenizer.name) == name:
            return name
    raise UserError(
        f"the model's vocabulary {tokenizer.name} splits text by the pattern "
        f"{tokenizer.pattern[:60]!r}, which other programs have no name for, so it cannot be "
        f"exported; train with tokenize.pattern set to one of {', '.join(PATTERNS)}."
    )
