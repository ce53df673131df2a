"""What a model is: its family's graph and its own sizes and numbers. Knows nothing about torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Family:
    """How a family's graph differs from the others. The defaults are Llama's graph.

    That is: RMSNorm before each sublayer, rotary positions, SwiGLU, no biases.
    """

    layer_norm: bool = False
    """LayerNorm, with biases, instead of RMSNorm."""
    norm_eps: float = 1e-6
    """For a model from scratch: added to the variance or the mean square of a vector."""
    pre_norm: bool = True
    """Norm what enters a sublayer."""
    post_norm: bool = False
    """Norm what leaves a sublayer, before it is added to the residual stream."""
    learned_positions: bool = False
    """A learned vector for each position instead of rotation."""
    qk_norm: str = ""
    """`head`: norm each query and key head. `layer`: norm all query heads as one vector, and all
    key heads."""
    qkv_bias: bool = False
    bias: bool = False
    """Biases in all other matrices of a block."""
    activation: str = "swiglu"
    """The feed-forward layer: `swiglu`, `geglu` or `gelu`, which has no gate."""
    scaled_embedding: bool = False
    """Multiply embeddings by sqrt(width)."""
    global_every: int = 0
    """Every so many layers, attention reaches the whole context; in the others, `sliding_window`
    only. 0: no layer but those of models without a window."""
    local_rope_base: float = 0.0
    """`rope_base` of layers with a window, without scaling; 0: the model's."""
    unrotated_every: int = 0
    """Every so many layers, queries and keys have no positions; 0: never."""


FAMILIES = {
    "llama": Family(norm_eps=1e-5),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm="head"),
    "gpt2": Family(
        layer_norm=True,
        norm_eps=1e-5,
        learned_positions=True,
        qkv_bias=True,
        bias=True,
        activation="gelu",
    ),
    "gemma3": Family(
        post_norm=True,
        qk_norm="head",
        activation="geglu",
        scaled_embedding=True,
        global_every=6,
        local_rope_base=10_000.0,
    ),
    "smollm3": Family(unrotated_every=4),
    "olmo2": Family(pre_norm=False, post_norm=True, qk_norm="layer"),
}
"""By the name that transformers and llama.cpp give them. `llama` is also SmolLM2, TinyLlama and
Mistral; `gpt2` is Radford et al. 2019."""

ROPE_SCALINGS = ("", "linear", "llama3", "yarn")
"""How rotation is slowed down for a longer context, see `rope.py`; "": not at all."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything needed to build the model; stored with its weights."""

    arch: str
    """A key of `FAMILIES`."""
    vocab_size: int
    context: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    width: int
    ff_width: int
    tie_embeddings: bool
    dropout: float
    norm_eps: float = 1e-6
    sliding_window: int = 0
    """Tokens, itself included, that a token attends to in layers with a window; 0: all."""
    rope_base: float = 10_000.0
    rope_scaling: str = ""
    """One of `ROPE_SCALINGS`. The next five are its numbers."""
    rope_factor: float = 1.0
    rope_original_context: int = 0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_attention: float = 1.0

    @property
    def family(self) -> Family:
        """The graph."""
        return FAMILIES[self.arch]

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding and the head: a multiple of 64, which speeds up matrix products."""
        return -(-self.vocab_size // 64) * 64

    def window(self, layer: int) -> int:
        """Tokens that a token attends to in this layer, itself included; 0: all."""
        every = self.family.global_every
        return 0 if every and (layer + 1) % every == 0 else self.sliding_window

    def rotated(self, layer: int) -> bool:
        """Whether positions rotate this layer's queries and keys."""
        every = self.family.unrotated_every
        return not self.family.learned_positions and not (every and (layer + 1) % every == 0)
