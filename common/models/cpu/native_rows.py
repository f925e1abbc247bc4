"""What layers do between their products, in C (rows.c), for a CPU, with the gradients.

Each is one pass over memory where torch makes several, and keeps for the gradient what it was given
and no more: dropout draws its mask again.

Shape letters: n rows, C width.
"""

import ctypes
from ctypes import c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.native.library import native

LEAST = 2**13
"""Elements from which on the call pays."""


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("rows.c")).library
    if found is not None:
        found.gate.argtypes = [*[c_void_p] * 2, *[c_int64] * 3, c_void_p]
        found.gate_gradient.argtypes = [*[c_void_p] * 3, *[c_int64] * 3, *[c_void_p] * 2]
        found.gelu.argtypes = [c_void_p, *[c_int64] * 3, c_void_p]
        found.gelu_gradient.argtypes = [*[c_void_p] * 2, *[c_int64] * 3, c_void_p]
        found.drop.argtypes = [*[c_void_p] * 2, *[c_int64] * 3, c_float, *[c_int64] * 3, c_void_p]
        found.norm.argtypes = [*[c_void_p] * 2, *[c_int64] * 2, c_float, c_int64, *[c_void_p] * 2]
        found.norm_gradient.argtypes = [*[c_void_p] * 4, *[c_int64] * 3, *[c_void_p] * 2]
        for name in ("gate", "gelu", "drop", "norm"):
            getattr(found, name).restype = None
        for name in ("gate_gradient", "gelu_gradient", "norm_gradient"):
            getattr(found, name).restype = None
        found.summed_rows.restype = c_int64
    return found


def computes(x: Tensor, *halves: torch.dtype) -> bool:
    """Whether the kernels can compute with it, in float32 or one of `halves`, and are faster; a
    compiler joins torch's operations itself."""
    return (
        x.is_cpu
        and x.numel() >= LEAST
        and (x.dtype == torch.float32 or x.dtype in halves)
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


def gated(gate: Tensor, value: Tensor) -> Tensor:
    """silu(gate) * value, of the same shape and type, float32 or bfloat16."""
    return _Gate.apply(gate.contiguous(), value.contiguous())


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        found = torch.empty_like(gate)
        _call("gate", gate, value, *_counts(gate), found)
        return found

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor, ...]:
        _refuse_second()
        gate, value = ctx.saved_tensors
        found = torch.empty_like(gate), torch.empty_like(value)
        _call("gate_gradient", gate, value, output_grads[0].contiguous(), *_counts(gate), *found)
        return found


def gelu(x: Tensor) -> Tensor:
    """As torch's with `approximate="tanh"`, in float32 or bfloat16."""
    return _Gelu.apply(x.contiguous())


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        found = torch.empty_like(x)
        _call("gelu", x, *_counts(x), found)
        return found

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> Tensor:
        _refuse_second()
        (x,) = ctx.saved_tensors
        found = torch.empty_like(x)
        _call("gelu_gradient", x, output_grads[0].contiguous(), *_counts(x), found)
        return found


def dropped(x: Tensor, dropout: nn.Module, onto: Tensor | None = None) -> Tensor:
    """What the module makes of x, added to `onto` if there is one."""
    if not _drops(x, dropout, onto):
        return dropout(x) if onto is None else onto + dropout(x)
    assert isinstance(dropout, nn.Dropout)
    seed = int(torch.randint(-(2**63), 2**63 - 1, (), device="cpu"))
    return _Dropped.apply(x.contiguous(), onto, seed, dropout.p)


def _drops(x: Tensor, dropout: nn.Module, onto: Tensor | None) -> bool:
    """Whether it is torch's module, which nothing watches, and has something to drop."""
    return (
        type(dropout) is nn.Dropout
        and dropout.training
        and 0 < dropout.p < 1
        and not dropout._forward_hooks
        and not dropout._forward_pre_hooks
        and (onto is None or (onto.dtype == torch.float32 and onto.shape == x.shape))
        and computes(x, torch.bfloat16)
    )


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, onto: Tensor | None, seed: int, rate: float) -> Tensor:
        ctx.settings, ctx.dtype = (seed, rate, onto is not None), x.dtype
        found = torch.empty_like(x if onto is None else onto, memory_format=torch.contiguous_format)
        _drop(x, None if onto is None else onto.contiguous(), seed, rate, found)
        return found

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second()
        (upstream,), (seed, rate, is_onto) = output_grads, ctx.settings
        found = upstream.new_empty(upstream.shape, dtype=ctx.dtype)
        _drop(upstream.contiguous(), None, seed, rate, found)
        return found, upstream if is_onto else None, None, None


def _drop(x: Tensor, onto: Tensor | None, seed: int, rate: float, found: Tensor) -> None:
    threshold = min(round(rate * 2**32), 2**32 - 1)  # 2**32 would wrap round and drop nothing
    draws = seed, threshold, 1 / (1 - rate)
    halves = (each.dtype == torch.bfloat16 for each in (x, found))
    _call("drop", x, onto, x.numel(), *draws, *halves, torch.get_num_threads(), found)


def normed(x_nC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
    """As torch's `rms_norm` in float32."""
    return _Norm.apply(x_nC.contiguous(), weight_C.contiguous(), eps)


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nC: Tensor, weight_C: Tensor, eps: float) -> Tensor:
        found, inverse_n = torch.empty_like(x_nC), x_nC.new_empty(x_nC.shape[:-1])
        counts = inverse_n.numel(), len(weight_C), eps, torch.get_num_threads()
        _call("norm", x_nC, weight_C, *counts, found, inverse_n)
        ctx.save_for_backward(x_nC, weight_C, inverse_n)
        return found

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        _refuse_second()
        x_nC, weight_C, inverse_n = ctx.saved_tensors
        rows, library = inverse_n.numel(), _library()
        assert library is not None
        found = torch.empty_like(x_nC)
        parts = weight_C.new_empty(-(-rows // library.summed_rows()), len(weight_C))
        counts = rows, len(weight_C), torch.get_num_threads()
        given = x_nC, weight_C, inverse_n, output_grads[0].contiguous()
        _call("norm_gradient", *given, *counts, found, parts)
        return found, parts.sum(0), None


def _refuse_second() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError("kernels in C can be differentiated once; VARKD_NATIVE=0 does without")


def _counts(x: Tensor) -> tuple[int, ...]:
    return x.numel(), x.dtype == torch.bfloat16, torch.get_num_threads()


def _call(name: str, *operands: Any) -> None:
    """Tensors are handed over by their addresses; nothing is computed for those without content."""
    if any(isinstance(each, Tensor) and each.is_meta for each in operands):
        return
    plain = (each.data_ptr() if isinstance(each, Tensor) else each for each in operands)
    getattr(_library(), name)(*plain)
