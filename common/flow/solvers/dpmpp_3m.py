"""Multistep DPM-Solver++ of third order (arXiv 2211.01095) on the straight path, as DD1 samples its
data (arXiv 2412.17153, appendix C: ten evaluations).

Two things that paper leaves open are decided here (docs/one_step.md, "Solvers"): times are even in
t from 0 to 0.999, and the order falls again at the end. Without the latter the last step
extrapolates over a wide gap, and 23 to 100 % of the tokens are wrong.
"""

import math

from torch import Tensor

from common.config.quantities import Count
from common.flow.field import at_data_time, denoised
from common.flow.laws import CodeLaw
from common.flow.solver import Carried, SolverConfig

LAST = 0.999


class Config(SolverConfig):
    steps: Count = 10
    """Evaluations."""

    def solve(self, law: CodeLaw, noise_ND: Tensor) -> Carried:
        time = [LAST * k / self.steps for k in range(self.steps + 1)]
        found: list[Tensor] = []
        x_ND = noise_ND
        for step in range(self.steps):
            found = [*found[-2:], denoised(law, x_ND, at_data_time(time[step]))]
            order = min(3, step + 1, self.steps - step)
            x_ND = _advanced(x_ND, found[-order:], time[step + 1 - order : step + 2])
        return Carried(x_ND, law.nearest(x_ND))


def _snr(t: float) -> float:
    """Half the logarithm of the signal-to-noise ratio, lambda in the paper."""
    return math.log(t / (1 - t)) if t else -math.inf


def _advanced(x_ND: Tensor, denoised_of: list[Tensor], time: list[float]) -> Tensor:
    """One step from time[-2] to time[-1]; `denoised_of` are as many as the order, at the times
    before, the last at time[-2]. At pure noise lambda is -inf, and ratios to it vanish."""
    now, after = time[-2], time[-1]
    h = _snr(after) - _snr(now)
    phi_1 = math.expm1(-h)
    x_ND = (1 - after) / (1 - now) * x_ND - after * phi_1 * denoised_of[-1]
    if len(denoised_of) == 1:
        return x_ND
    h_0 = _snr(now) - _snr(time[-3])
    slope_0 = (denoised_of[-1] - denoised_of[-2]) * (h / h_0)
    if len(denoised_of) == 2:
        return x_ND - after / 2 * phi_1 * slope_0
    h_1 = _snr(time[-3]) - _snr(time[-4])
    slope_1 = (denoised_of[-2] - denoised_of[-3]) * (h / h_1)
    phi_2 = phi_1 / h + 1
    phi_3 = phi_2 / h - 0.5
    first = slope_0 + h_0 / (h_0 + h_1) * (slope_0 - slope_1)
    second = (slope_0 - slope_1) * (h / (h_0 + h_1))
    return x_ND + after * phi_2 * first - after * phi_3 * second
