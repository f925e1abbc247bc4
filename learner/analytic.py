"""Divergences and cluster sums with their gradients written out, as autograd functions.

Autograd differentiates exp, log and products one by one and keeps each; the gradient of a
divergence in log q is one formula (docs/method.md, "Gradients of the divergences"), which the
forward pass has nearly computed. So the loss of a token costs a few passes over its codes.

q is the student, p the teacher; no gradient goes to the teacher. The plain formulas of
learner/divergence.py are what tests compare with.

Shape letters: N tokens, K categories, V codes, C clusters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LEAST = 1e-30
"""Probabilities below are at the edge of float32: their logarithms are computed by maxima."""

Slope = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(log q, log p), each (N, K) -> divergence_N, and its derivative in log q, (N, K)."""


def with_slope(slope: Slope, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """divergence_N, whose backward pass multiplies by the slope."""
    return _WithSlope.apply(student_NK, teacher_NK, slope)


class _WithSlope(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_NK: Tensor, teacher_NK: Tensor, slope: Slope) -> Tensor:
        loss_N, slope_NK = slope(student_NK, teacher_NK)
        ctx.save_for_backward(slope_NK)
        return loss_N

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (slope_NK,) = ctx.saved_tensors
        return slope_NK * output_grads[0][..., None], None, None


def forward_kl_slope(student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """sum p (log p - log q); -p."""
    p_NK = teacher_NK.exp()
    return _mean(p_NK, teacher_NK - student_NK), p_NK.neg_()


def reverse_kl_slope(student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """sum q (log q - log p); q (log q - log p + 1)."""
    q_NK, ratio_NK = student_NK.exp(), student_NK - teacher_NK
    loss_N = _mean(q_NK, ratio_NK)
    return loss_N, ratio_NK.add_(1).mul_(q_NK)


def jensen_shannon_slope(
    student_NK: Tensor, teacher_NK: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """b KL(p || m) + (1 - b) KL(q || m); (1 - b) q (log q - log m): what m's own change would add
    is (1 - b) q (1 - (b p + (1 - b) q) / m) = 0. The ends are the KLs that they tend to."""
    if beta in (0, 1):
        return (reverse_kl_slope if beta else forward_kl_slope)(student_NK, teacher_NK)
    q_NK, p_NK, mixture_NK = _mixture(student_NK, teacher_NK, beta)
    log_m_NK = mixture_NK.log_()
    slope_NK = torch.sub(student_NK, log_m_NK)
    student_N = _mean(q_NK, slope_NK)
    teacher_N = _mean(p_NK, torch.sub(teacher_NK, log_m_NK, out=log_m_NK))
    return beta * teacher_N + (1 - beta) * student_N, slope_NK.mul_(q_NK).mul_(1 - beta)


def total_variation_slope(student_NK: Tensor, teacher_NK: Tensor) -> tuple[Tensor, Tensor]:
    """1/2 sum |q - p|; 1/2 q sign(q - p)."""
    q_NK = student_NK.exp()
    apart_NK = q_NK - teacher_NK.exp()
    loss_N = 0.5 * torch.linalg.vector_norm(apart_NK, 1, dim=-1)
    return loss_N, apart_NK.sign_().mul_(q_NK).mul_(0.5)


def skew_kl_slope(student_NK: Tensor, teacher_NK: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """KL(p || m), m = a p + (1 - a) q; -(1 - a) q p / m."""
    q_NK, p_NK, mixture_NK = _mixture(student_NK, teacher_NK, alpha)
    slope_NK = q_NK.mul_(p_NK).div_(mixture_NK).mul_(alpha - 1)
    return _mean(p_NK, torch.sub(teacher_NK, mixture_NK.log_())), slope_NK


def skew_reverse_kl_slope(
    student_NK: Tensor, teacher_NK: Tensor, alpha: float
) -> tuple[Tensor, Tensor]:
    """KL(q || m), m = (1 - a) p + a q; q (log q - log m + 1 - a q / m)."""
    q_NK, _, mixture_NK = _mixture(student_NK, teacher_NK, 1 - alpha)
    moved_NK = q_NK / mixture_NK
    ratio_NK = torch.sub(student_NK, mixture_NK.log_())
    loss_N = _mean(q_NK, ratio_NK)
    return loss_N, ratio_NK.add_(1).sub_(moved_NK, alpha=alpha).mul_(q_NK)


def _mixture(student_NK: Tensor, teacher_NK: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, p and s p + (1 - s) q, at least the smallest normal number: what is lost below is none."""
    q_NK, p_NK = student_NK.exp(), teacher_NK.exp()
    tiny = torch.finfo(q_NK.dtype).tiny
    return q_NK, p_NK, torch.lerp(q_NK, p_NK, share).clamp_min_(tiny)


def _mean(share_NK: Tensor, value_NK: Tensor) -> Tensor:
    """sum share * value; a value that is not finite counts nothing where the share is 0, and is set
    to 0 there: the limit of 0 log 0, and of its gradient."""
    value_NK.masked_fill_(share_NK == 0, 0)
    return torch.linalg.vecdot(share_NK, value_NK)


def summed_logprob(logit_NV: Tensor, cluster_V: Tensor, size: int) -> Tensor:
    """log of the summed probability of each cluster, (N, C), for codes in cluster_V of C = size.

    The derivative in the logit of code v is [v in c] q_v / Q_c - q_v. Of the softmax there are the
    exponentials alone: normalised is what the clusters add up to.
    """
    return _SummedLogprob.apply(logit_NV, cluster_V, size)


class _SummedLogprob(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logit_NV: Tensor, cluster_V: Tensor, size: int) -> Tensor:
        weight_NV = (logit_NV - logit_NV.amax(-1, keepdim=True)).exp_()
        total_NC = logit_NV.new_zeros((*logit_NV.shape[:-1], size))
        total_NC.scatter_add_(-1, cluster_V.expand_as(weight_NV), weight_NV)
        if bool((total_NC >= LEAST).all()):  # one wait for the device per chunk
            total_N1 = total_NC.sum(-1, keepdim=True)
            ctx.save_for_backward(cluster_V, weight_NV, total_NC, total_N1)
            return (total_NC / total_N1).log_()
        logprob_NV = logit_NV.log_softmax(-1)  # tiny sums would be none
        result_NC, share_NV = _by_maxima(logprob_NV, cluster_V, size)
        ctx.save_for_backward(cluster_V, share_NV, logprob_NV.exp_())
        return result_NC

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad_NC,), (cluster_V, *saved) = output_grads, ctx.saved_tensors
        if len(saved) == 3:
            weight_NV, total_NC, total_N1 = saved
            factor_NC = grad_NC / total_NC - grad_NC.sum(-1, keepdim=True) / total_N1
            return factor_NC.index_select(-1, cluster_V).mul_(weight_NV), None, None
        share_NV, q_NV = saved
        share_NV = grad_NC.index_select(-1, cluster_V).mul_(share_NV)
        return share_NV - q_NV * share_NV.sum(-1, keepdim=True), None, None


def _by_maxima(logprob_NV: Tensor, cluster_V: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The logarithms, and every code's share of its cluster, whatever the probabilities; -inf and
    shares of 0 for a cluster of no mass."""
    index_NV = cluster_V.expand_as(logprob_NV)
    floor = logprob_NV.new_full((*logprob_NV.shape[:-1], size), -torch.inf)
    top_NC = floor.scatter_reduce(-1, index_NV, logprob_NV, "amax")
    empty_NC = top_NC == -torch.inf
    share_NV = (logprob_NV - top_NC.masked_fill(empty_NC, 0).gather(-1, index_NV)).exp()
    total_NC = torch.zeros_like(top_NC).scatter_add(-1, index_NV, share_NV)
    total_NC = total_NC.masked_fill(empty_NC, 1)
    return total_NC.log() + top_NC, share_NV / total_NC.gather(-1, index_NV)
