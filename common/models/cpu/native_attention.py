"""Causal attention over whole sequences in C (causal.c), for a CPU, with its gradient.

It begins with what the fused projection gives: queries and keys are turned where they are read, and
nothing but that, the mixture and one number a query is kept for the gradient.

Shape letters: B sequences, n slots, H heads, C width, P rotary pairs.
"""

import ctypes
from ctypes import POINTER, Structure, byref, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.native.library import native

TYPES = torch.float32, torch.bfloat16


class _Pass(Structure):
    _fields_ = [
        *((name, c_void_p) for name in ("fused", "turn")),
        *((name, c_int64) for name in ("sequences", "slots", "heads", "channels")),
        *((name, c_int64) for name in ("is_bf16", "threads")),
    ]


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("causal.c")).library
    if found is not None:
        found.causal_forward.argtypes = [POINTER(_Pass), *[c_void_p] * 2]
        found.causal_backward.argtypes = [POINTER(_Pass), *[c_void_p] * 4]
        found.causal_forward.restype = found.causal_backward.restype = c_int64
    return found


def attends(fused_BnE: Tensor, turn_nP2: Tensor) -> bool:
    """Whether the kernels can compute with it; a compiler joins torch's operations itself."""
    return (
        fused_BnE.is_cpu
        and fused_BnE.numel() > 0
        and turn_nP2.ndim == 3  # one order for all sequences
        and fused_BnE.dtype in TYPES
        and not torch.compiler.is_compiling()
        and _library() is not None
    )


def attended(fused_BnE: Tensor, turn_nP2: Tensor, heads: int) -> Tensor:
    """mixed_BnC from queries, keys and values [q | k | v] that lie side by side (E = 3 C), of which
    the first two are turned by the angles (n, P, 2)."""
    return _Attention.apply(fused_BnE.contiguous(), turn_nP2.float().contiguous(), heads)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused_BnE: Tensor, turn_nP2: Tensor, heads: int) -> Tensor:
        batch, slots, channels = fused_BnE.shape
        mixed_BnC = fused_BnE.new_empty(batch, slots, channels // 3)
        logsum_BHn = fused_BnE.new_empty(batch, heads, slots, dtype=torch.float32)
        if not fused_BnE.is_meta:
            of, found = _pass(fused_BnE, turn_nP2, heads), (mixed_BnC, logsum_BHn)
            _call("causal_forward", byref(of), *found)
        ctx.save_for_backward(fused_BnE, turn_nP2, mixed_BnC, logsum_BHn)
        return mixed_BnC

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("a CPU's attention can be differentiated once, as torch's")
        fused_BnE, turn_nP2, mixed_BnC, logsum_BHn = ctx.saved_tensors
        grad_BnE = torch.empty_like(fused_BnE)
        if not grad_BnE.is_meta:
            of = _pass(fused_BnE, turn_nP2, logsum_BHn.shape[1])
            upstream_BnC = output_grads[0].contiguous()
            _call("causal_backward", byref(of), mixed_BnC, logsum_BHn, upstream_BnC, grad_BnE)
        return grad_BnE, None, None


def _pass(fused_BnE: Tensor, turn_nP2: Tensor, heads: int) -> _Pass:
    batch, slots, channels = fused_BnE.shape
    width = channels // 3 // heads
    assert turn_nP2.shape == (slots, width // 2, 2)
    return _Pass(
        *(fused_BnE.data_ptr(), turn_nP2.data_ptr(), batch, slots, heads, width),
        *(fused_BnE.dtype == torch.bfloat16, torch.get_num_threads()),
    )


def _call(name: str, of: Any, *tensors: Tensor) -> None:
    library = _library()
    assert library is not None
    if not getattr(library, name)(of, *(tensor.data_ptr() for tensor in tensors)):
        raise MemoryError(f"{name}: no room for the heads of a thread")
