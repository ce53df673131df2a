"""The `train:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice, Range


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the model is trained. Every key is part of the run's fingerprint."""

    SECTION: ClassVar[str] = "train"

    seed: Annotated[int, Range(0, 2**31 - 1)]
    """Seed of the initial weights, the order of the windows, token splitting and dropout."""

    epochs: Annotated[int, Range(1, 100_000)]
    """Passes over the training split."""

    batch_size: Annotated[int, Range(1, 65_536)]
    """Windows of `model.context` tokens in one micro-batch (one forward and backward pass)."""

    accumulate: Annotated[int, Range(1, 65_536)]
    """Micro-batches whose gradients are averaged into one optimizer step."""

    adapt: Annotated[str, Choice(("full", "lora"))]
    """What is trained. `full`: every weight. `lora`: low-rank adapters beside the matrices of the
    blocks (LoRA, Hu et al. 2021), while the weights of `init_from` are frozen; the checkpoint has
    the adapters merged into the weights."""

    lora_rank: Annotated[int, Range(1, 4_096)]
    """Rank of an adapter. The three `lora_*` settings have no effect with `adapt: full`."""

    lora_alpha: Annotated[float, Range(0, 100_000)]
    """Adapter outputs are scaled by lora_alpha / lora_rank."""

    lora_targets: Annotated[str, Choice(("attention", "feed_forward", "all"))]
    """The layers of each block that get adapters."""

    optimizer: Annotated[str, Choice(("muon", "adamw"))]
    """`muon`: Muon for the matrices of the blocks, AdamW for embedding, head and norms. `adamw`:
    AdamW for everything. The adapters of `lora` always use AdamW."""

    lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the matrices of the blocks, or of the adapters; with `adamw`, of all
    weights."""

    embedding_lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the token embedding. No effect with `adamw` or `lora`."""

    head_lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the head and the norms. No effect with `adamw` or `lora`."""

    warmup_steps: Annotated[int, Range(0, 1_000_000)]
    """Steps over which the learning rates rise from zero."""

    decay_fraction: Annotated[float, Range(0, 1)]
    """Fraction of all steps, at the end, over which the learning rates decay linearly."""

    final_lr_fraction: Annotated[float, Range(0, 1)]
    """Final learning rates as a fraction of their peaks."""

    weight_decay: Annotated[float, Range(0, 100)]
    """Decoupled weight decay of the matrices, multiplied by their learning rate. With `lora` it
    applies to the adapters and pulls towards the weights of `init_from`."""

    momentum: Annotated[float, Range(0, 0.9999)]
    """Muon: decay of the momentum."""

    beta1: Annotated[float, Range(0, 0.9999)]
    """AdamW: decay of the mean gradient."""

    beta2: Annotated[float, Range(0, 0.99999)]
    """AdamW: decay of the mean squared gradient."""

    grad_clip: Annotated[float, Range(0, 1_000)]
    """Gradients with a larger norm are scaled down to it. 0 is off."""

    share_spellings: bool
    """Let the rows of the embedding and of the head learn together for the spellings of a word:
    with and without a capital, with and without the space before. No effect with `adamw` or
    `lora`."""

    ema_decay: Annotated[float, Range(0, 0.99999)]
    """Decay of an exponential moving average of the weights over the steps. The averages are
    validated and kept instead of the weights themselves. 0 is off."""

    calibrate: bool
    """Multiply the final norm's weights by the factors with the lowest validation loss. They are
    fitted anew after every epoch: many passes over a text make a model overconfident. Training
    itself is not affected."""

    split_tokens: Annotated[float, Range(0, 0.9)]
    """Probability that a token of a batch is split into the two it was merged from, so that epochs
    differ. It follows the learning rate schedule. 0 is off."""

    patience: Annotated[int, Range(0, 100_000)]
    """Stop after this many epochs without a better validation loss. 0: never."""

    val_tokens: Annotated[int, Range(1, 1_000_000_000)]
    """Tokens of the validation split scored after each epoch; a longer split is sampled evenly."""

    precision: Annotated[str, Choice(("auto", "bf16", "float32"))]
    """Number format of the matrix products; the weights stay float32. `auto` is bf16 if the
    hardware has instructions for it."""

    compile: Annotated[str, Choice(("auto", "on", "off"))]
    """Compile the model with `torch.compile`. `auto` does so if the run is long enough to gain more
    than the half minute that compiling takes."""
