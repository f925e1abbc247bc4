"""The flow from noise to codes in closed form: denoiser, velocity, score, noise prediction.

On a straight path x = alpha c + sigma noise, alpha + sigma = 1, everything follows from the
posterior of the code c given x. Both papers write the same path with opposite times: Distilled
Decoding 1 (arXiv 2412.17153, eq. 3) has alpha = t, Distilled Decoding 2 (arXiv 2510.21003, eq. 1)
sigma = t. Here a moment is the pair, and only `at_data_time` and `at_noise_time` know of times.

All is differentiable in x. Shape letters: N slots, K codes of a slot, D code width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.flow.laws import CodeLaw


@dataclass(frozen=True, slots=True)
class Moment:
    """Shares of code and noise: numbers, or one for each slot as tensors (N, 1)."""

    alpha: float | Tensor
    sigma: float | Tensor


def at_data_time(t: float | Tensor) -> Moment:
    """DD1's time: 0 is noise, 1 is data."""
    return Moment(t, 1 - t)


def at_noise_time(t: float | Tensor) -> Moment:
    """DD2's time: 1 is noise, 0 is data."""
    return Moment(1 - t, t)


def posterior_logits(law: CodeLaw, x_ND: Tensor, at: Moment) -> Tensor:
    """log p_j - |x - alpha c_j|^2 / (2 sigma^2), less what is the same for all j."""
    products_NK = law.products(x_ND)
    inner_NK = at.alpha * products_NK - at.alpha**2 * law.half_norm_NK
    return law.logprob_NK + inner_NK / at.sigma**2


def denoised(law: CodeLaw, x_ND: Tensor, at: Moment) -> Tensor:
    """E[c | x], the D of both papers."""
    return law.expectation(posterior_logits(law, x_ND, at).softmax(-1))


def velocity(law: CodeLaw, x_ND: Tensor, at: Moment) -> Tensor:
    """dx/dt in DD1's time, towards the data: E[c - noise | x] (eq. 3); DD2's is its negative."""
    return (denoised(law, x_ND, at) - x_ND) / at.sigma


def score(law: CodeLaw, x_ND: Tensor, at: Moment) -> Tensor:
    """Gradient of the log density of x; the same array at DD1's t and DD2's 1 - t."""
    return (at.alpha * denoised(law, x_ND, at) - x_ND) / at.sigma**2


def predicted_noise(law: CodeLaw, x_ND: Tensor, at: Moment) -> Tensor:
    """E[noise | x], which is -sigma times the score."""
    return (x_ND - at.alpha * denoised(law, x_ND, at)) / at.sigma


def denoised_of_velocity(velocity_ND: Tensor, x_ND: Tensor, at: Moment) -> Tensor:
    """D from a network's velocity in DD1's time."""
    return x_ND + at.sigma * velocity_ND


def velocity_of_score(score_ND: Tensor, x_ND: Tensor, at: Moment) -> Tensor:
    """In DD1's time; needs alpha > 0, for at pure noise the score does not know the data."""
    return (at.sigma * score_ND + x_ND) / at.alpha


def score_of_velocity(velocity_ND: Tensor, x_ND: Tensor, at: Moment) -> Tensor:
    """From DD1's time."""
    return (at.alpha * velocity_ND - x_ND) / at.sigma


def noisy(code_ND: Tensor, noise_ND: Tensor, at: Moment) -> Tensor:
    """The point of the path between a code and a noise vector."""
    return torch.as_tensor(at.alpha) * code_ND + torch.as_tensor(at.sigma) * noise_ND
