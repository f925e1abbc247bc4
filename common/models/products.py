"""Products of matrices by the faster of the two libraries that torch brings for CPUs.

In float32 torch asks MKL, which on some of AMD's processors uses half of what AVX-512 has; oneDNN
uses all of it. In bfloat16 torch asks oneDNN itself, but writes a bias to all rows first, which
is left to oneDNN here. Elsewhere and for small matrices torch's own choice stays.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST = 2**20
"""Multiplications from which on the call pays, which costs ten microseconds more."""


def linear(input_nC: Tensor, weight_EC: Tensor, bias_E: Tensor | None = None) -> Tensor:
    """As torch's; (..., C) by (E, C) gives (..., E), and may be differentiated as often."""
    if not _gains(input_nC, weight_EC, bias_E):
        return F.linear(input_nC, weight_EC, bias_E)
    if not torch.is_grad_enabled():
        return _multiplied(input_nC, weight_EC, bias_E)
    product = _Product.apply(input_nC, weight_EC)
    return product if bias_E is None else product + bias_E


class _Product(torch.autograd.Function):
    """Its gradients are such products themselves."""

    @staticmethod
    def forward(ctx: Any, input_nC: Tensor, weight_EC: Tensor) -> Tensor:
        ctx.save_for_backward(input_nC, weight_EC)
        return _multiplied(input_nC, weight_EC, None)

    @staticmethod
    def backward(ctx: Any, *output_grads: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (grad_nE,) = output_grads
        input_nC, weight_EC = ctx.saved_tensors
        of_input, of_weight = ctx.needs_input_grad
        input_grad = linear(grad_nE, weight_EC.T) if of_input else None
        if not of_weight:
            return input_grad, None
        return input_grad, _summed(grad_nE.flatten(0, -2), input_nC.flatten(0, -2))


def _summed(grad_nE: Tensor, input_nC: Tensor) -> Tensor:
    """The sum of outer products, (E, C); oneDNN copies the transposed factor that comes first, so
    the narrower one does."""
    if grad_nE.shape[1] <= input_nC.shape[1]:
        return linear(grad_nE.T, input_nC.T)
    return linear(input_nC.T, grad_nE.T).T


def _multiplied(input_nC: Tensor, weight_EC: Tensor, bias_E: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input_nC, weight_EC, bias_E, "none", [], "")


def _gains(input_nC: Tensor, weight_EC: Tensor, bias_E: Tensor | None) -> bool:
    return (
        input_nC.numel() * weight_EC.shape[0] >= LEAST
        and input_nC.dtype == weight_EC.dtype
        and _differs(input_nC.dtype, bias_E)
        and (bias_E is None or _is_plain(bias_E, weight_EC))
        and input_nC.device.type == "cpu"
        and input_nC.ndim > 1
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and _is_amd_with_avx512()
    )


def _is_plain(bias_E: Tensor, weight_EC: Tensor) -> bool:
    """oneDNN reads it as if it were."""
    fits = bias_E.shape == weight_EC.shape[:1] and bias_E.dtype == weight_EC.dtype
    return fits and bias_E.is_contiguous()


def _differs(dtype: torch.dtype, bias_E: Tensor | None) -> bool:
    """Whether torch itself would do otherwise."""
    adds = bias_E is not None and not torch.is_grad_enabled()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and adds)


@cache
def _is_amd_with_avx512() -> bool:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        about = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "AuthenticAMD" in about and torch.backends.mkldnn.is_available()
