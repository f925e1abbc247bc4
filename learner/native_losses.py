"""The kernels of the loss in C (loss.c), for a CPU; loss_kernels.py has the same for a GPU.

They read float32: logits of another type are widened for a call, which takes a fraction of the
time that the formulas take in that type.

Shape letters: N tokens, V codes, C clusters.
"""

import ctypes
from ctypes import POINTER, Structure, byref, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.native.library import native

KINDS = ("fkl", "rkl", "mix", "tvd", "jsd", "skl", "srkl")
"""In the order of loss.c."""


class _Pair(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("student", "teacher")),
        *((name, c_int64) for name in ("tokens", "codes")),
        *((name, c_int64) for name in ("student_stride", "teacher_stride", "threads")),
        ("share", c_float),
    ]


class _Clustered(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("logit", "cluster")),
        *((name, c_int64) for name in ("tokens", "codes", "clusters", "stride", "threads")),
    ]


@cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, where this machine has a compiler."""
    found = native(Path(__file__).with_name("loss.c")).library
    if found is not None:
        found.divergences.argtypes = [POINTER(_Pair), c_int64, *[c_void_p] * 2]
        found.divergence_gradients.argtypes = [POINTER(_Pair), c_int64, *[c_void_p] * 3]
        found.cluster_totals.argtypes = [POINTER(_Clustered), *[c_void_p] * 2]
        found.cluster_gradients.argtypes = [POINTER(_Clustered), *[c_void_p] * 4]
        for name in ("divergences", "divergence_gradients", "cluster_totals", "cluster_gradients"):
            getattr(found, name).restype = None
    return found


def divergences(
    student_NV: Tensor, teacher_NV: Tensor, name: str, share: float
) -> tuple[Tensor, Tensor]:
    """loss_N and totals_N3: both logsumexps and the sum of slopes."""
    student_NV, teacher_NV = student_NV.float(), teacher_NV.float()
    loss_N = student_NV.new_empty(len(student_NV))
    totals_N3 = student_NV.new_empty(len(student_NV), 3)
    if not loss_N.is_meta:
        pair, made = _pair(student_NV, teacher_NV, share), (loss_N.data_ptr(), totals_N3.data_ptr())
        _library().divergences(byref(pair), KINDS.index(name), *made)
    return loss_N, totals_N3


def divergence_gradients(
    student_NV: Tensor, teacher_NV: Tensor, totals_N3: Tensor, upstream_N: Tensor,
    name: str, share: float,
) -> Tensor:  # fmt: skip
    """Gradient in the student's logits."""
    dtype, student_NV, teacher_NV = student_NV.dtype, student_NV.float(), teacher_NV.float()
    found_NV = student_NV.new_empty(student_NV.shape)
    if not found_NV.is_meta:
        pair = _pair(student_NV, teacher_NV, share)
        parts = totals_N3.data_ptr(), upstream_N.data_ptr(), found_NV.data_ptr()
        _library().divergence_gradients(byref(pair), KINDS.index(name), *parts)
    return found_NV.to(dtype)


def cluster_totals(logit_NV: Tensor, cluster_V: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """total_NC of exp(logit - most_N), and the greatest logits most_N."""
    logit_NV = logit_NV.float()
    total_NC = logit_NV.new_empty(len(logit_NV), size)
    most_N = logit_NV.new_empty(len(logit_NV))
    if not total_NC.is_meta:
        of = _clustered(logit_NV, cluster_V, size)
        _library().cluster_totals(byref(of), total_NC.data_ptr(), most_N.data_ptr())
    return total_NC, most_N


def cluster_gradients(
    logit_NV: Tensor, cluster_V: Tensor, total_NC: Tensor, most_N: Tensor, upstream_NC: Tensor
) -> Tensor:
    """Gradient in the logits from that in the logarithms of the sums."""
    dtype, logit_NV = logit_NV.dtype, logit_NV.float()
    found_NV = logit_NV.new_empty(logit_NV.shape)
    factor_NC = upstream_NC.clone()
    if not found_NV.is_meta:
        of = _clustered(logit_NV, cluster_V, total_NC.shape[-1])
        parts = [part.data_ptr() for part in (total_NC, most_N, factor_NC, found_NV)]
        _library().cluster_gradients(byref(of), *parts)
    return found_NV.to(dtype)


def _pair(student_NV: Tensor, teacher_NV: Tensor, share: float) -> _Pair:
    return _Pair(
        *(student_NV.data_ptr(), teacher_NV.data_ptr(), *student_NV.shape),
        *(student_NV.stride(0), teacher_NV.stride(0), torch.get_num_threads(), share),
    )


def _clustered(logit_NV: Tensor, cluster_V: Tensor, size: int) -> _Clustered:
    assert cluster_V.dtype == torch.long
    assert cluster_V.is_contiguous()
    return _Clustered(
        *(logit_NV.data_ptr(), cluster_V.data_ptr(), *logit_NV.shape, size),
        *(logit_NV.stride(0), torch.get_num_threads()),
    )


def _library() -> ctypes.CDLL:
    found = library()
    assert found is not None
    return found
