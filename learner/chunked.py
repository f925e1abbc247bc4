"""Losses on logits without the logits: head, softmax and loss in chunks of tokens.

Peak memory grows with chunk * V, not with B * L * V, in the backward pass too: gradients of the
hidden vectors and of the head are computed chunk by chunk during the forward pass and handed out
in backward. Nothing is computed twice.

Shape letters: N tokens, n tokens of a chunk, C width, V codes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""(logit_nV, which tokens) -> scalar sum of weighted losses of the chunk."""


def chunked_loss(
    hidden_NC: Tensor, head: nn.Linear, loss: ChunkLoss, chunk: int, groups: Sequence[int] = ()
) -> Tensor:
    """Sum of `loss` over chunks of at most `chunk` tokens, differentiable in hidden and head.

    Groups of neighbouring tokens (their sizes, in order) are never cut: a chunk holds whole ones,
    at least one, whatever its size.
    """
    spans = whole_groups(groups, chunk) if groups else cuts(len(hidden_NC), chunk)
    return _ChunkedLoss.apply(hidden_NC, head.weight, head.bias, loss, spans)


def cuts(count: int, chunk: int) -> list[slice]:
    """Slices of at most `chunk` that cover range(count)."""
    return [slice(start, min(start + chunk, count)) for start in range(0, count, chunk)]


def whole_groups(sizes: Sequence[int], chunk: int) -> list[slice]:
    """Slices of whole groups, of at most `chunk` where a group allows it."""
    spans = [slice(0, 0)]
    for size in sizes:
        last = spans[-1]
        if last.stop - last.start + size > chunk and last.stop > last.start:
            spans.append(slice(last.stop, last.stop + size))
        else:
            spans[-1] = slice(last.start, last.stop + size)
    return spans


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        loss: ChunkLoss,
        spans: list[slice],
    ) -> Tensor:
        leaves = [weight_VC.detach().requires_grad_()]
        if bias_V is not None:
            leaves.append(bias_V.detach().requires_grad_())
        grads = [torch.zeros_like(leaf) for leaf in leaves]
        hidden_grad = torch.zeros_like(hidden_NC)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for tokens in spans:
            part_nC = hidden_NC[tokens].detach().requires_grad_()
            with torch.enable_grad():
                value = loss(F.linear(part_nC, *leaves), tokens)
            part_grad, *leaf_grads = torch.autograd.grad(value, (part_nC, *leaves))
            hidden_grad[tokens] = part_grad
            for grad, found in zip(grads, leaf_grads, strict=True):
                grad += found
            total += value.detach()
        ctx.save_for_backward(hidden_grad, *grads)
        return total

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = output_grads
        hidden_grad, *grads = ctx.saved_tensors
        bias_grad = grads[1] * scale if len(grads) == 2 else None
        return hidden_grad * scale, grads[0] * scale, bias_grad, None, None
