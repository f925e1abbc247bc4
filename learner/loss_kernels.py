"""Triton kernels of the loss: one program a token, the codes in blocks, nothing kept between.

A softmax, a divergence and its gradient read the logits of teacher and student twice, and write one
gradient; operation by operation they are read and written some twenty times.

Shape letters: N tokens, V codes, C clusters.
"""

# pyright: reportMissingImports=false, reportIndexIssue=false

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Codes at a time."""
WARPS = 8
LOWEST = tl.constexpr(-3e38)
"""Where maxima begin: finite, so that a block of nothing but -inf adds 0."""
TINY = tl.constexpr(1.1754944e-38)
"""The smallest normal number of float32."""


@triton.jit
def _logits(row_at, start, V, BLOCK: tl.constexpr):
    code = start + tl.arange(0, BLOCK)
    inside = code < V
    logit = tl.load(row_at + code, mask=inside, other=float("-inf")).to(tl.float32)
    return logit, code, inside


@triton.jit
def _log_total(row_at, V, BLOCK: tl.constexpr):
    """logsumexp of a row."""
    most, total = LOWEST + 0.0, 0.0
    for start in range(0, V, BLOCK):
        logit, _, _ = _logits(row_at, start, V, BLOCK)
        greater = tl.maximum(most, tl.max(logit, 0))
        total = total * tl.exp(most - greater) + tl.sum(tl.exp(logit - greater), 0)
        most = greater
    return most + tl.log(total)


@triton.jit
def _at_least_tiny(x):
    """NaN stays, which a maximum would drop."""
    return tl.where(x < TINY, TINY, x)


@triton.jit
def _product(mass, log_ratio):
    """0 where there is no mass; NaN stays, which `mass > 0` would drop."""
    return tl.where(mass == 0, 0.0, mass * log_ratio)


@triton.jit
def _terms(log_q, q, log_p, p, share, NAME: tl.constexpr):
    """What each code adds to the divergence, and its derivative in log q (learner/analytic.py)."""
    forward = _product(p, log_p - log_q)
    ratio = tl.where(q == 0, 0.0, log_q - log_p)
    if NAME == "fkl":
        term, slope = forward, -p
    elif NAME == "rkl":
        term, slope = q * ratio, q * (ratio + 1)
    elif NAME == "mix":
        term = share * q * ratio + (1 - share) * forward
        slope = share * q * (ratio + 1) - (1 - share) * p
    elif NAME == "tvd":
        term = 0.5 * tl.abs(q - p)
        slope = 0.5 * q * tl.where(q > p, 1.0, tl.where(q < p, -1.0, 0.0))
    elif NAME == "jsd":
        log_m = tl.log(_at_least_tiny(share * p + (1 - share) * q))
        below = (1 - share) * _product(q, log_q - log_m)
        term = share * _product(p, log_p - log_m) + below
        slope = below
    elif NAME == "skl":
        m = _at_least_tiny(share * p + (1 - share) * q)
        term = _product(p, log_p - tl.log(m))
        slope = (share - 1) * q * p / m
    else:  # srkl
        m = _at_least_tiny((1 - share) * p + share * q)
        term = _product(q, log_q - tl.log(m))
        slope = term + q * (1 - share * q / m)
    return term, slope


@triton.jit
def divergence_kernel(
    student, teacher, loss, totals, V, student_stride, teacher_stride, share,
    NAME: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """loss_N, and what the gradient needs of a row: both logsumexps and the sum of slopes."""
    row = tl.program_id(0).to(tl.int64)
    student += row * student_stride
    teacher += row * teacher_stride
    norm_q, norm_p = _log_total(student, V, BLOCK), _log_total(teacher, V, BLOCK)
    value, slopes = 0.0, 0.0
    for start in range(0, V, BLOCK):
        logit, _, inside = _logits(student, start, V, BLOCK)
        log_q = logit - norm_q
        logit, _, _ = _logits(teacher, start, V, BLOCK)
        log_p = logit - norm_p
        term, slope = _terms(log_q, tl.exp(log_q), log_p, tl.exp(log_p), share, NAME)
        value += tl.sum(tl.where(inside, term, 0.0), 0)
        slopes += tl.sum(tl.where(inside, slope, 0.0), 0)
    tl.store(loss + row, value)
    tl.store(totals + 3 * row, norm_q)
    tl.store(totals + 3 * row + 1, norm_p)
    tl.store(totals + 3 * row + 2, slopes)


@triton.jit
def divergence_gradient_kernel(
    student, teacher, totals, upstream, gradient, V, student_stride, teacher_stride, share,
    NAME: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """(slope - q * sum of slopes) * upstream, through the softmax to the student's logits."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    norm_q = tl.load(totals + 3 * row)
    norm_p = tl.load(totals + 3 * row + 1)
    slopes = tl.load(totals + 3 * row + 2)
    factor = tl.load(upstream + row)
    logit, code, inside = _logits(student + row * student_stride, block * BLOCK, V, BLOCK)
    log_q = logit - norm_q
    logit, _, _ = _logits(teacher + row * teacher_stride, block * BLOCK, V, BLOCK)
    log_p = logit - norm_p
    q = tl.exp(log_q)
    _, slope = _terms(log_q, q, log_p, tl.exp(log_p), share, NAME)
    found = (slope - q * slopes) * factor
    kind = gradient.dtype.element_ty
    tl.store(gradient + row * V + code, found.to(kind), mask=inside)


@triton.jit
def cluster_kernel(logits, cluster, total, most_of, V, C, stride, BLOCK: tl.constexpr):
    """Each cluster's sum of exp(logit - the row's greatest), added to zeros, and the greatest."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride
    most = LOWEST + 0.0
    for start in range(0, V, BLOCK):
        logit, _, _ = _logits(logits, start, V, BLOCK)
        most = tl.maximum(most, tl.max(logit, 0))
    tl.store(most_of + row, most)
    for start in range(0, V, BLOCK):
        logit, code, inside = _logits(logits, start, V, BLOCK)
        index = tl.load(cluster + code, mask=inside, other=0)
        tl.atomic_add(total + row * C + index, tl.exp(logit - most), mask=inside, sem="relaxed")


@triton.jit
def cluster_gradient_kernel(
    logits, cluster, total, most_of, upstream, gradient, V, C, stride, BLOCK: tl.constexpr
):
    """A code's share of its cluster, times the derivative in the cluster's logarithm."""
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    most = tl.load(most_of + row)
    logit, code, inside = _logits(logits + row * stride, block * BLOCK, V, BLOCK)
    at = row * C + tl.load(cluster + code, mask=inside, other=0)
    share = tl.exp(logit - most) / tl.load(total + at, mask=inside, other=1.0)
    found = share * tl.load(upstream + at, mask=inside, other=0.0)
    kind = gradient.dtype.element_ty
    tl.store(gradient + row * V + code, found.to(kind), mask=inside)


def divergences(
    student_NV: Tensor, teacher_NV: Tensor, name: str, share: float
) -> tuple[Tensor, Tensor]:
    """loss_N and totals_N3 of `divergence_kernel`."""
    count, codes = student_NV.shape
    loss_N = student_NV.new_empty(count, dtype=torch.float32)
    totals_N3 = student_NV.new_empty((count, 3), dtype=torch.float32)
    strides = student_NV.stride(0), teacher_NV.stride(0)
    divergence_kernel[(count,)](
        student_NV, teacher_NV, loss_N, totals_N3, codes, *strides, share,
        NAME=name, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return loss_N, totals_N3


def divergence_gradients(
    student_NV: Tensor, teacher_NV: Tensor, totals_N3: Tensor, upstream_N: Tensor,
    name: str, share: float,
) -> Tensor:  # fmt: skip
    """Gradient in the student's logits, in their type."""
    count, codes = student_NV.shape
    found_NV = torch.empty((count, codes), dtype=student_NV.dtype, device=student_NV.device)
    strides = student_NV.stride(0), teacher_NV.stride(0)
    divergence_gradient_kernel[(count, triton.cdiv(codes, BLOCK))](
        student_NV, teacher_NV, totals_N3, upstream_N, found_NV, codes, *strides, share,
        NAME=name, BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return found_NV


def cluster_totals(logit_NV: Tensor, cluster_V: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """total_NC and most_N of `cluster_kernel`."""
    count, codes = logit_NV.shape
    total_NC = logit_NV.new_zeros((count, size), dtype=torch.float32)
    most_N = logit_NV.new_empty(count, dtype=torch.float32)
    cluster_kernel[(count,)](
        logit_NV, cluster_V, total_NC, most_N, codes, size, logit_NV.stride(0),
        BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return total_NC, most_N


def cluster_gradients(
    logit_NV: Tensor, cluster_V: Tensor, total_NC: Tensor, most_N: Tensor, upstream_NC: Tensor
) -> Tensor:
    """Gradient in the logits, in their type, from that in the logarithms of the sums."""
    count, codes = logit_NV.shape
    found_NV = torch.empty((count, codes), dtype=logit_NV.dtype, device=logit_NV.device)
    cluster_gradient_kernel[(count, triton.cdiv(codes, BLOCK))](
        logit_NV, cluster_V, total_NC, most_N, upstream_NC, found_NV, codes,
        total_NC.shape[-1], logit_NV.stride(0), BLOCK=BLOCK, num_warps=WARPS,
    )  # fmt: skip
    return found_NV
