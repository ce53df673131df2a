"""The `model:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice, Range

ARCHES = ("qwen3", "gpt2", "llama", "qwen2", "gemma3", "smollm3", "olmo2")
FROM_SCRATCH = ARCHES[:4]
"""The others exist as weights only."""
FITTED = ("bigrams", "looking_back")
"""The values of `model.init` that fit embedding and head to the text."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The shape of the transformer. The vocabulary size comes from the tokenizer."""

    SECTION: ClassVar[str] = "model"

    arch: Annotated[str, Choice(ARCHES)]
    """The family. `llama`: RMSNorm, rotary positions, SwiGLU, no biases. `qwen2`: with biases of
    queries, keys and values. `qwen3`: with QK-norm instead. `gpt2`: LayerNorm, learned positions,
    GELU, biases. `gemma3`, `smollm3` and `olmo2` come with `init_from` only."""

    layers: Annotated[int, Range(1, 200)]
    """Transformer blocks."""

    heads: Annotated[int, Range(1, 256)]
    """Attention heads; each has `width / heads` dimensions, or as many as those of `init_from`."""

    kv_heads: Annotated[int, Range(1, 256)]
    """Key/value heads, a divisor of `heads` (grouped-query attention). `gpt2` needs
    `kv_heads = heads`."""

    width: Annotated[int, Range(8, 16_384)]
    """Size of a token's vector. Multiples of 64 are fast, and llama.cpp's k-quants need multiples
    of 256."""

    ff_width: Annotated[int, Range(8, 131_072)]
    """Inner size of the feed-forward layer. On short texts twice `width` was better for
    `qwen3` than the usual 8/3; `gpt2` has four times."""

    context: Annotated[int, Range(8, 131_072)]
    """Tokens that the model attends to at most: its context length."""

    tie_embeddings: bool
    """Use one matrix for the token embedding and the output head."""

    dropout: Annotated[float, Range(0, 0.9)]
    """Share of activations set to zero in training, after the embedding and after each sublayer."""

    init: Annotated[str, Choice(("looking_back", "bigrams", "random", "base"))]
    """The initial weights. `bigrams` fits embedding and head to the counts of token pairs before
    the first step; needs `qwen3` with untied embeddings. `looking_back` also lets some heads begin
    by attending to the tokens one, two and three places before, and to what followed the last two
    tokens earlier. `base` takes the weights that `init_from` names, and their head size."""

    def __post_init__(self) -> None:
        if self.init != "base" and self.width % self.heads:
            raise ValueError(
                f"model.width {self.width} is not a multiple of model.heads {self.heads}; "
                "each head takes an equal part of the width."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads {self.heads} is not a multiple of model.kv_heads {self.kv_heads}; "
                "each key/value head serves an equal number of heads."
            )
        if self.init != "base" and self.arch not in FROM_SCRATCH:
            raise ValueError(
                f"model.arch is {self.arch}, which only weights that exist can have; set it to one "
                f"of {', '.join(FROM_SCRATCH)}, or name such weights in init_from."
            )
        if self.init != "base" and self.arch != "gpt2" and (self.width // self.heads) % 2:
            raise ValueError(
                f"model.width / model.heads is {self.width // self.heads}, but rotary positions "
                "need an even head size; change model.width or model.heads."
            )
        if self.arch == "gpt2" and self.kv_heads != self.heads:
            raise ValueError(
                f"model.kv_heads is {self.kv_heads}, but GPT-2 has as many as model.heads; "
                f"set model.kv_heads to {self.heads}."
            )
        if self.init in FITTED and (self.arch != "qwen3" or self.tie_embeddings):
            raise ValueError(
                f"model.init is {self.init}, which needs model.arch qwen3 and model.tie_embeddings "
                f"false, but they are {self.arch} and {str(self.tie_embeddings).lower()}; set "
                "model.init to random or auto."
            )
