"""What teacher and networks say of noisy vectors, in one form: the mean of what they may have been
without noise (arXiv 2510.21003, eq. 1 and appendix E.1; docs/one_step.md, "Losses").

With time 1 for noise, D = E[vector | x] gives the velocity (x - D) / t and the score
((1 - t) D - x) / t^2.

Shape letters: B sequences, L slots, N slots of a law, C width, D code width, M draws.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from common.device import autocast
from common.flow.field import at_noise_time, denoised
from common.flow.laws import CodeLaw
from common.models.velocity_model import VelocityModel

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(x_MBLD, time_MBL) to D_MBLD, differentiable in x."""
NUMBERS = 2**24
"""Of a law (`CodeLaw.numbers`) that are held at once; where there are more, slots are taken in
parts and computed again on the way back."""


def of_teacher(law: CodeLaw, numbers: int = NUMBERS) -> Denoiser:
    """In closed form, of the teacher's distributions of B * L slots, in this order: the guided
    logits after the sampler's filters (common/models/filters.py), normalised; in their precision,
    also under autocast."""

    def denoiser(x_MBLD: Tensor, time_MBL: Tensor) -> Tensor:
        x_MND, time_MN1 = x_MBLD.flatten(1, -2), time_MBL.flatten(1)[..., None]
        draws = zip(x_MND.to(law.logprob_NK), time_MN1.to(law.logprob_NK), strict=True)
        with autocast(x_MBLD.device, torch.float32):
            found = [_in_parts(law, x_ND, time_N1, numbers) for x_ND, time_N1 in draws]
        return torch.stack(found).view_as(x_MBLD)

    return denoiser


def of_network(model: VelocityModel, feature_BLC: Tensor) -> Denoiser:
    """D = x - t velocity."""

    def denoiser(x_MBLD: Tensor, time_MBL: Tensor) -> Tensor:
        return x_MBLD - time_MBL[..., None] * model.velocity(x_MBLD, time_MBL, feature_BLC)

    return denoiser


def velocity_of(denoised_MBLD: Tensor, x_MBLD: Tensor, time_MBL: Tensor) -> Tensor:
    """dx/dt of a denoiser's D; time 1 is noise."""
    return (x_MBLD - denoised_MBLD) / time_MBL[..., None]


def _in_parts(law: CodeLaw, x_ND: Tensor, time_N1: Tensor, numbers: int) -> Tensor:
    rows = max(1, numbers // law.numbers)
    if rows >= len(law):
        return _denoised(law, x_ND, time_N1)
    spans = [slice(first, first + rows) for first in range(0, len(law), rows)]
    found = [
        checkpoint(
            *(_denoised, law.rows(span), x_ND[span], time_N1[span]),
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for span in spans
    ]
    return torch.cat(found)


def _denoised(law: CodeLaw, x_ND: Tensor, time_N1: Tensor) -> Tensor:
    return denoised(law, x_ND, at_noise_time(time_N1))
