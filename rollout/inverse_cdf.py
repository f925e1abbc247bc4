"""Codes from uniforms.

Shape letters: B sequences, n slots, V vocabulary.
"""

import torch
from torch import Tensor

from common.device import runs_kernels


def draw(logprob_BnV: Tensor, noise_Bn: Tensor) -> Tensor:
    """Inverse-CDF sampling in float64: one uniform per slot, exact for large vocabularies.
    Only differences of the logarithms in a slot matter."""
    if runs_kernels(logprob_BnV):
        from rollout.draw_kernel import draw_rows

        return draw_rows(logprob_BnV, noise_Bn)
    cdf_BnV = logprob_BnV.to(torch.float64, copy=True).exp_().cumsum_(-1)
    target_Bn1 = noise_Bn[..., None].to(cdf_BnV) * cdf_BnV[..., -1:]
    index_Bn = torch.searchsorted(cdf_BnV, target_Bn1, right=True)[..., 0]
    return index_Bn.clamp_max(cdf_BnV.shape[-1] - 1)  # NaN is larger than all; `decode` refuses it
