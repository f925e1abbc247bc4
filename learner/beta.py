"""How much distillation counts beside a reward, from step to step.

Constant as in KDRL (arXiv 2506.02208), falling as in its best runs, or first all and then nothing
(arXiv 2609.04108).
"""

from typing import Literal

from common.config.quantities import Steps, Weight
from common.config.schema import Config


class BetaConfig(Config):
    beta: Weight = 2e-3
    """Weight of distillation."""
    schedule: Literal["joint", "anneal", "switch"] = "joint"
    """joint: constant; anneal: beta falls by `decay` a step to `beta_min`; switch: distillation
    alone for `switch_step` steps, then the reward alone."""
    beta_min: Weight = 1e-3
    """Where annealing ends."""
    decay: Weight = 5e-5
    """How much annealing takes off beta in a step."""
    switch_step: Steps = 1000
    """Steps of distillation before a switch."""

    def weights_at(self, step: int) -> tuple[float, float]:
        """(weight of the reward, beta) when so many steps are done."""
        if self.schedule == "switch":
            return (0.0, self.beta) if step < self.switch_step else (1.0, 0.0)
        if self.schedule == "anneal":
            return 1.0, max(self.beta - self.decay * step, min(self.beta, self.beta_min))
        return 1.0, self.beta
