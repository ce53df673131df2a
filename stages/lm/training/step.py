"""The gradients of one step, accumulated over its micro-batches."""

import math

import torch
from torch import Tensor

from ..model.runtime import Machine
from ..model.transformer import Transformer
from .batches import MicroBatch


def accumulate_gradients(
    model: Transformer, micro_batches: list[MicroBatch], machine: Machine
) -> list[Tensor]:
    """Add the gradients of the mean loss over all targets to the parameters.

    Returns each micro-batch's share of that mean, in nats, still on the device.
    """
    num_targets = sum(batch.num_targets for batch in micro_batches)
    losses = []
    for batch in micro_batches:
        with machine.autocast():
            loss = model(batch.inputs, targets=batch.targets, segments=batch.segments)
        # Weighted by targets, so that the step's loss is the mean over all of them; a micro-batch
        # of records may have none.
        loss = loss / (num_targets / batch.num_targets if batch.num_targets else math.inf)
        loss.backward()
        losses.append(loss.detach())
    return losses


def clip_gradients(trained: list[Tensor], limit: float) -> Tensor:
    """Scale the gradients down to a norm of `limit` (0: never); returns the norm before."""
    return torch.nn.utils.clip_grad_norm_(trained, limit or math.inf)
