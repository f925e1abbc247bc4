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

from common.models.products import linear

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
    """Autograd sees one chunk's logits as its leaf; the head's own products are written out, so
    that its gradient is added up in place, and its weights are cast once."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: Tensor,
        weight_VC: Tensor,
        bias_V: Tensor | None,
        loss: ChunkLoss,
        spans: list[slice],
    ) -> Tensor:
        kind, dtype = hidden_NC.device.type, hidden_NC.dtype
        if kind != "meta" and torch.is_autocast_enabled(kind):  # where nothing is computed: none
            dtype = torch.get_autocast_dtype(kind)
        factor_VC = weight_VC.detach().to(dtype)
        added_V = None if bias_V is None else bias_V.detach().to(dtype)
        wide = torch.promote_types(weight_VC.dtype, torch.float32)
        weight_grad = torch.zeros_like(weight_VC, dtype=wide)
        bias_grad = None if bias_V is None else torch.zeros_like(bias_V, dtype=wide)
        hidden_grad = torch.empty_like(hidden_NC)
        total = hidden_NC.new_zeros((), dtype=torch.float32)
        for tokens in spans:
            part_nC = hidden_NC[tokens].detach().to(dtype)
            logit_nV = linear(part_nC, factor_VC, added_V).requires_grad_()
            with torch.enable_grad():
                value = loss(logit_nV, tokens)
            (logit_grad,) = torch.autograd.grad(value, logit_nV)
            del logit_nV
            hidden_grad[tokens] = linear(logit_grad, factor_VC.T)
            if dtype == wide:
                weight_grad.addmm_(logit_grad.T, part_nC)
            else:
                weight_grad += logit_grad.T @ part_nC
            if bias_grad is not None:
                bias_grad += logit_grad.sum(0, dtype=wide)
            total += value.detach()
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        ctx.dtypes = weight_VC.dtype, None if bias_V is None else bias_V.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = output_grads
        hidden_grad, weight_grad, bias_grad = ctx.saved_tensors
        weight, bias = ctx.dtypes
        given = None if bias_grad is None else (bias_grad * scale).to(bias)
        return hidden_grad * scale, (weight_grad * scale).to(weight), given, None, None
