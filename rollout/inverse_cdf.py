"""Codes from uniforms.

Shape letters: B sequences, n slots, V vocabulary.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.device import runs_kernels
from common.models.filters import FilterConfig, filtered_logit, filtered_logprob
from common.native.library import native

Draw = Callable[[Tensor, Tensor], Tensor]
"""Normalised logprob_BnV and what every slot has of noise (B, n, ...) to token_Bn."""


def draw(logprob_BnV: Tensor, noise_Bn: Tensor) -> Tensor:
    """Inverse-CDF sampling in float64: one uniform per slot, exact for large vocabularies.
    Only differences of the logarithms in a slot matter."""
    if runs_kernels(logprob_BnV):
        from rollout.draw_kernel import drawn_rows

        return drawn_rows(logprob_BnV, noise_Bn)[0]
    cdf_BnV = logprob_BnV.to(torch.float64, copy=True).exp_().cumsum_(-1)
    target_Bn1 = noise_Bn[..., None].to(cdf_BnV) * cdf_BnV[..., -1:]
    index_Bn = torch.searchsorted(cdf_BnV, target_Bn1, right=True)[..., 0]
    return index_Bn.clamp_max(cdf_BnV.shape[-1] - 1)  # NaN is larger than all; `decode` refuses it


def drawn(
    logit_BnV: Tensor, noise_Bn: Tensor, filters: FilterConfig, draws: Draw
) -> tuple[Tensor, Tensor]:
    """token_Bn of the filtered logits, and the log-probability of each."""
    if draws is draw and runs_kernels(logit_BnV):
        from rollout.draw_kernel import drawn_rows

        return drawn_rows(filtered_logit(logit_BnV, filters), noise_Bn)
    library = _library() if logit_BnV.is_cpu and logit_BnV.dtype == torch.float32 else None
    if draws is draw and library is not None:
        return _drawn_in_c(library, filtered_logit(logit_BnV, filters), noise_Bn)
    logprob_BnV = filtered_logprob(logit_BnV, filters)
    token_Bn = draws(logprob_BnV, noise_Bn)
    return token_Bn, logprob_BnV.gather(-1, token_Bn[..., None])[..., 0]


def _drawn_in_c(library: ctypes.CDLL, logit_BnV: Tensor, noise_Bn: Tensor) -> tuple[Tensor, Tensor]:
    """What `draw` draws, by one call; of logits without content (a plan's), the first codes."""
    assert noise_Bn.dtype == torch.float64, "noise is in double precision"
    assert noise_Bn.shape == logit_BnV.shape[:-1], "every slot has its noise"
    # Whatever somebody has made torch's defaults.
    token_Bn = torch.empty(noise_Bn.shape, dtype=torch.long, device="cpu")
    logprob_Bn = torch.empty(noise_Bn.shape, dtype=torch.float32, device="cpu")
    if logit_BnV.is_meta:
        return token_Bn.zero_(), logprob_Bn.zero_()
    logit_BnV, noise_Bn = logit_BnV.contiguous(), noise_Bn.contiguous()
    tensors = logit_BnV, noise_Bn, token_Bn, logprob_Bn
    logit, noise, token, logprob = (of.data_ptr() for of in tensors)
    sizes = noise_Bn.numel(), logit_BnV.shape[-1]
    library.draw(logit, noise, *sizes, token, logprob, torch.get_num_threads())
    return token_Bn, logprob_Bn


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("draw.c")).library
    if found is not None:
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        found.draw.argtypes = [pointer, pointer, size, size, pointer, pointer, size]
        found.draw.restype = None
    return found
