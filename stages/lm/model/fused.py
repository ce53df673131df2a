"""Norms, rotation, activation and loss with hand-written gradients, for speed in eager torch.

On a CPU a third or more of a small model's step is spent between the matrix products, and there
separate torch operations mostly wait for memory. Each function here computes one part forward and
backward in few passes over memory: it reuses buffers, and returns a gradient in the layout that the
preceding matrix product needs. Shapes: B sequences, T tokens, W width, H heads, K key/value heads,
S head size, F feed-forward width, N targets, V vocabulary.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import Function
from torch.autograd.function import once_differentiable

LOGITS_CHUNK = 1 << 18
"""Logits in a chunk of the loss on a CPU: 1 MiB in float32, which fits a core's cache."""


def product_dtype(x: Tensor) -> torch.dtype:
    """The type in which matrix products of `x` are computed: autocast's if on, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def inverse_rms(x: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """One over the root mean square of each vector, (..., 1), computed in `dtype`.

    `eps` is added to the mean square.
    """
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=dtype)
    return norm.square_().mul_(1 / x.size(-1)).add_(eps).rsqrt_()


class RMSNormFunction(Function):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        """x (..., W) and weight (W,), both float32; the result has type `dtype`."""
        scale = inverse_rms(x, eps, x.dtype)
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Gradients of x and weight."""
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        product = normed * grad
        grad_weight = product.flatten(0, -2).sum(0)
        inner = (product @ weight).mul_(-1 / x.size(-1)).unsqueeze(-1)
        grad_x = (grad * weight).addcmul_(normed, inner).mul_(scale)
        return grad_x, grad_weight, None, None


class QKNormRoPEFunction(Function):
    """Split a joint projection into heads, norm queries and keys if asked (Qwen3), rotate them.

    The rotation is RoPE (Su et al. 2021) on pairs (i, i + S/2). Each head is contiguous in memory,
    which attention needs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        query_weight: Tensor | None,
        key_weight: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """qkv (B, T, (H + 2K) S), the norms' weights (S,) or None for no norm, tables (T, S) ->
        (B, H, T, S), 2 x (B, K, T, S).
        """
        batch, length, _ = qkv.shape
        size = cos.size(1)
        by_head = qkv.view(batch, length, -1, size).transpose(1, 2)
        kv_heads = (by_head.size(1) - heads) // 2
        both = by_head[:, : heads + kv_heads]  # queries and keys
        ctx.heads = heads
        if query_weight is None or key_weight is None:
            ctx.save_for_backward(cos, sin)
            turned = rotated(both.to(cos.dtype).contiguous(), cos, sin).to(qkv.dtype)
        else:
            scale = inverse_rms(both, eps, cos.dtype)
            normed = torch.mul(
                both, scale, out=torch.empty(both.shape, dtype=cos.dtype, device=both.device)
            )
            weight = _head_weights(query_weight, key_weight, heads, kv_heads)
            turned = rotated(normed * weight, cos, sin).to(qkv.dtype)
            ctx.save_for_backward(cos, sin, normed, scale, weight)
        value = by_head[:, heads + kv_heads :].contiguous()
        return turned[:, :heads], turned[:, heads:], value

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_query: Tensor, grad_key: Tensor, grad_value: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Gradients of qkv and of both weights."""
        cos, sin, *of_norm = ctx.saved_tensors
        batch, kv_heads, length, size = grad_value.shape
        heads = ctx.heads
        grad = torch.cat((grad_query, grad_key), dim=1).to(cos.dtype)
        grad = rotated(grad, cos, -sin)
        grad_weights: tuple[Tensor | None, ...] = (None, None)
        if of_norm:
            normed, scale, weight = of_norm
            product = normed * grad
            grad_weight = product.sum(dim=(0, 2))
            grad_weights = grad_weight[:heads].sum(0), grad_weight[heads:].sum(0)
            inner = (product * weight).sum(dim=-1, keepdim=True).mul_(-1 / size)
            grad = grad.mul_(weight).addcmul_(normed, inner).mul_(scale)
        grad_qkv = grad_value.new_empty(batch, length, heads + 2 * kv_heads, size)
        by_head = grad_qkv.transpose(1, 2)
        by_head[:, : heads + kv_heads] = grad
        by_head[:, heads + kv_heads :] = grad_value
        return grad_qkv.view(batch, length, -1), *grad_weights, None, None, None, None


def _head_weights(query: Tensor, key: Tensor, heads: int, kv_heads: int) -> Tensor:
    """The norm's weight of each head, (H + K, 1, S)."""
    size = query.size(0)
    return torch.cat((query.expand(heads, size), key.expand(kv_heads, size))).unsqueeze(1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE on `x` (..., T, S): rotate pairs (i, i + S/2) by the angles of `cos`, `sin` (T, S)."""
    half = x.size(-1) // 2
    turned = x * cos
    turned[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return turned


class SwiGLUFunction(Function):
    """silu(gate) * up, from a joint projection to both halves (Shazeer 2020)."""

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        """(..., 2F) -> (..., F)."""
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The gradient of gate_up."""
        (gate_up,) = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return torch.cat((grad_gate, F.silu(gate).mul_(grad)), dim=-1)


class HeadLossFunction(Function):
    """Mean cross-entropy of the logits x @ weight.T, whose gradients the forward pass computes.

    The logits of a large vocabulary are the largest array of a training step by far. Here they
    exist once, in the type of the product, and are overwritten with their gradient chunk by chunk,
    while the chunk is in the cache (as in Wijmans et al. 2024, "Cut Your Losses").
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
        """x (N, W) in the product's type, weight (V or more, W), targets (N,) -> scalar loss."""
        narrow = weight.to(x.dtype)
        logits = x @ narrow.T
        logits[:, vocab_size:] = 0
        exact = torch.promote_types(x.dtype, torch.float32)
        nats = torch.zeros((), dtype=exact, device=x.device)
        rows = max(1, LOGITS_CHUNK // vocab_size) if x.device.type == "cpu" else max(1, len(x))
        chunks = logits[:, :vocab_size].split(rows)
        for chunk, ids in zip(chunks, targets.split(rows), strict=True):
            ids = ids.unsqueeze(1)
            logprobs = chunk.log_softmax(dim=1, dtype=exact)
            nats = nats - logprobs.gather(1, ids).sum()
            # The gradient of the logits is softmax - one_hot(target).
            grad = logprobs.exp_()
            grad.scatter_add_(1, ids, grad.new_full(ids.shape, -1.0))
            chunk.copy_(grad)
        ctx.save_for_backward(x, narrow, logits)
        return nats / max(1, len(targets))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Gradients of x and, unless it is frozen, of weight."""
        x, narrow, grad_logits = ctx.saved_tensors
        scale = grad / max(1, len(x))
        grad_x = (grad_logits @ narrow).mul_(scale)
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None
        grad_weight = (grad_logits.T @ x).to(grad.dtype).mul_(scale)
        return grad_x, grad_weight, None, None


def head_loss(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, *, partial: bool = False
) -> Tensor:
    """Mean cross-entropy in nats: x (N, W), weight (V or more, W), targets (N,) -> scalar.

    Rows of `weight` from V = `vocab_size` on are padding and get no probability. With `partial`,
    negative targets are left out of the mean, which is 0 if all are negative.
    """
    if x.is_cuda and torch.compiler.is_compiling():
        return plain_head_loss(x, weight, targets, vocab_size)
    # A GPU multiplies faster with the padded number of rows, a CPU with fewer.
    rows = weight if x.is_cuda else weight[:vocab_size]
    loss: Tensor = _head_loss_in_chunks(x, rows, targets, vocab_size, partial)
    return loss


def plain_head_loss(x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int) -> Tensor:
    """`head_loss` in plain torch operations, for a compiler: it fuses them on a GPU, into fewer
    passes over the logits than eager torch needs.
    """
    logits = F.linear(x, weight).float()
    # Masked, the padding gets its zero gradient in the same pass; slicing it off costs one more.
    padding = torch.arange(logits.size(1), device=x.device) >= vocab_size
    logits = logits.masked_fill(padding, float("-inf"))
    learned = targets >= 0
    nats: Tensor = F.cross_entropy(logits, targets.clamp(min=0), reduction="none")
    return (nats * learned).sum() / learned.sum().clamp(min=1)


# Compiled, the loop over chunks would be unrolled. torch.compiler.disable does the same, but
# imports the compiler at once, which takes longer than everything else a text needs to begin.
@_disable_dynamo
def _head_loss_in_chunks(
    x: Tensor, weight: Tensor, targets: Tensor, vocab_size: int, partial: bool
) -> Tensor:
    if partial:
        learned = targets >= 0
        x, targets = x[learned], targets[learned]
    # Under autocast GPT-2's norm returns float32; the matrix products need autocast's type.
    loss: Tensor = HeadLossFunction.apply(  # type: ignore[no-untyped-call]
        x.to(product_dtype(x)), weight, targets, vocab_size
    )
    return loss
