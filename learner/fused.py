"""Divergences and cluster sums from logits by kernels of our own: Triton's on a GPU, C on a CPU.

The same numbers as learner/analytic.py's up to rounding, from logits of any float type: a gradient
is rounded to that type once, and nothing as large as the logits is kept for it.

Shape letters: N tokens, V codes, C clusters.
"""

import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from common.device import runs_kernels
from learner import native_losses
from learner.categorical import Categorical


def reads(of: Categorical) -> bool:
    """Whether the kernels can compute with it: they normalise logits (N, V) themselves."""
    logit_NV = of.given_NV
    if of.stays_as_it_is or logit_NV.ndim != 2 or not logit_NV.numel() or logit_NV.stride(-1) != 1:
        return False
    if logit_NV.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if logit_NV.device.type in ("cpu", "meta"):  # where a plan counts what either kind holds
        return native_losses.library() is not None
    return runs_kernels(logit_NV)


def _kernels(logit_NV: Tensor) -> ModuleType:
    if logit_NV.is_cuda:
        return importlib.import_module("learner.loss_kernels")  # needs Triton
    return native_losses


def divergence(student_NV: Tensor, teacher_NV: Tensor, name: str, share: float) -> Tensor:
    """divergence_N in float32 between the softmaxes; `name` and `share` as learner/divergence.py's
    have them: beta, alpha or the share of the reverse KL.

    Raises:
        ValueError: the two are of different shapes, of which kernels know nothing.
    """
    if student_NV.shape != teacher_NV.shape:
        raise ValueError(f"logits of shapes {[*student_NV.shape]} and {[*teacher_NV.shape]}")
    return _Divergence.apply(student_NV, teacher_NV, name, share)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, student_NV: Tensor, teacher_NV: Tensor, name: str, share: float
    ) -> Tensor:
        kernels = _kernels(student_NV)
        loss_N, totals_N3 = kernels.divergences(student_NV, teacher_NV, name, share)
        ctx.save_for_backward(student_NV, teacher_NV, totals_N3)
        ctx.settings = name, share
        return loss_N

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        (student_NV, teacher_NV, totals_N3), (name, share) = ctx.saved_tensors, ctx.settings
        given = student_NV, teacher_NV, totals_N3, output_grads[0].contiguous(), name, share
        return _kernels(student_NV).divergence_gradients(*given), None, None, None


def cluster_logits(logit_NV: Tensor, cluster_V: Tensor, size: int, least: float) -> Tensor | None:
    """log of the summed exponentials of each cluster, (N, C) in float32, up to a constant per
    token; None where a sum is below `least` of the greatest, too small for what it is made of.

    Raises:
        ValueError: the clusters are not of these codes.
    """
    if cluster_V.shape != logit_NV.shape[-1:]:
        raise ValueError(f"clusters of {len(cluster_V)} codes, logits of {logit_NV.shape[-1]}")
    kernels = _kernels(logit_NV)
    total_NC, most_N = kernels.cluster_totals(logit_NV.detach(), cluster_V, size)
    if not bool((total_NC >= least).all()):  # one wait for the device per chunk
        return None
    return _ClusterLogits.apply(logit_NV, cluster_V, total_NC, most_N)


class _ClusterLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logit_NV: Tensor, cluster_V: Tensor, total_NC: Tensor, most_N: Tensor
    ) -> Tensor:
        ctx.save_for_backward(logit_NV, cluster_V, total_NC, most_N)
        return total_NC.log()

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        logit_NV, cluster_V, total_NC, most_N = ctx.saved_tensors
        given = logit_NV, cluster_V, total_NC, most_N, output_grads[0].contiguous()
        return _kernels(logit_NV).cluster_gradients(*given), None, None, None
