"""The `train:` section of `params.yaml`."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .loader import Choice, Range


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How the weights are found. Every key here is part of a run's identity."""

    SECTION: ClassVar[str] = "train"

    seed: Annotated[int, Range(0, 2**31 - 1)]
    """Fixes the initial weights, the order of the text and dropout."""

    epochs: Annotated[int, Range(1, 100_000)]
    """Passes over the training split."""

    batch_size: Annotated[int, Range(1, 65_536)]
    """Windows of `model.context` tokens in one forward and backward pass."""

    accumulate: Annotated[int, Range(1, 65_536)]
    """Passes whose gradients are averaged into one optimizer step."""

    adapt: Annotated[str, Choice(("full", "lora"))]
    """What is trained. `full`: every weight. `lora`: low-rank adapters beside the matrices of the
    blocks (LoRA, Hu et al. 2021) while the weights of `init_from` stay as they are; the model kept
    has both in one."""

    lora_rank: Annotated[int, Range(1, 4_096)]
    """Rows of an adapter. No effect without `lora`, as the next two."""

    lora_alpha: Annotated[float, Range(0, 100_000)]
    """What an adapter adds is taken times this over its rank."""

    lora_targets: Annotated[str, Choice(("attention", "feed_forward", "all"))]
    """The layers of a block that have adapters."""

    optimizer: Annotated[str, Choice(("muon", "adamw"))]
    """`muon`: Muon for the matrices of the blocks, AdamW for embedding, head and norms. `adamw`:
    AdamW for everything, and always for the adapters of `lora`."""

    lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the blocks' matrices or their adapters; with `adamw` of everything."""

    embedding_lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the token embedding. No effect with `adamw` or `lora`."""

    head_lr: Annotated[float, Range(0, 10)]
    """Peak learning rate of the head and the norms. No effect with `adamw` or `lora`."""

    warmup_steps: Annotated[int, Range(0, 1_000_000)]
    """Steps over which the learning rates rise from zero."""

    decay_fraction: Annotated[float, Range(0, 1)]
    """Share of all steps, at the end, over which the learning rates fall in a straight line."""

    final_lr_fraction: Annotated[float, Range(0, 1)]
    """Where the learning rates end, as a share of their peaks."""

    weight_decay: Annotated[float, Range(0, 100)]
    """Decoupled decay of the matrices, times their learning rate; with `lora` of the adapters, back
    towards `init_from`."""

    momentum: Annotated[float, Range(0, 0.9999)]
    """Muon: memory of the gradient."""

    beta1: Annotated[float, Range(0, 0.9999)]
    """AdamW: memory of the mean gradient."""

    beta2: Annotated[float, Range(0, 0.99999)]
    """AdamW: memory of the squared gradient."""

    grad_clip: Annotated[float, Range(0, 1_000)]
    """Largest norm of the gradient; larger ones are scaled down. 0 is off."""

    ema_decay: Annotated[float, Range(0, 0.99999)]
    """Memory of the averaged weights (an exponential moving average over the steps), which are
    validated and kept instead of the last ones. 0 is off."""

    calibrate: bool
    """Divide the logits by the temperature that suits the validation split best (Guo et al. 2017),
    found anew at every epoch's end: many passes over a text leave a model surer than it is right.
    The weights of the last norm hold it; training goes on without."""

    split_tokens: Annotated[float, Range(0, 0.9)]
    """Chance of each merged token of a batch to be taken apart, so that passes over a text differ;
    it falls with the learning rates. 0 is off."""

    patience: Annotated[int, Range(0, 100_000)]
    """Stop after this many epochs without a better validation loss. 0 is never."""

    val_tokens: Annotated[int, Range(1, 1_000_000_000)]
    """Tokens of the validation split scored at each epoch's end; more are thinned evenly."""

    precision: Annotated[str, Choice(("auto", "bf16", "float32"))]
    """Number format of the matrix products; the weights stay float32. `auto` takes bf16 where
    the hardware multiplies it faster."""

    compile: Annotated[str, Choice(("auto", "on", "off"))]
    """Translate the model with `torch.compile`. `auto` does where the run is long enough to repay
    the half minute that takes."""
