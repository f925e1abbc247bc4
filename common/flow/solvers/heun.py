"""Heun's method of second order in even steps of t; the last step is Euler's, for the velocity at
the data is 0 / 0."""

from torch import Tensor

from common.config.quantities import Count
from common.flow.field import at_data_time, velocity
from common.flow.laws import CodeLaw
from common.flow.solver import Carried, SolverConfig


class Config(SolverConfig):
    steps: Count = 50
    """Of two evaluations each, less one."""

    def solve(self, law: CodeLaw, noise_ND: Tensor) -> Carried:
        x_ND = noise_ND
        for step in range(self.steps):
            now, after = at_data_time(step / self.steps), at_data_time((step + 1) / self.steps)
            slope_ND = velocity(law, x_ND, now)
            ahead_ND = x_ND + slope_ND / self.steps
            if step + 1 < self.steps:
                slope_ND = (slope_ND + velocity(law, ahead_ND, after)) / 2
            x_ND = x_ND + slope_ND / self.steps
        return Carried(x_ND, law.nearest(x_ND))
