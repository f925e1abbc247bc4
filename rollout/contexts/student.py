"""Mixed rollouts: a ground-truth prefix continued by the student (VarKD eq. 6)."""

from rollout.context import SamplerName
from rollout.prefix import PrefixDistribution


class Config(PrefixDistribution):
    @property
    def sampler(self) -> SamplerName:
        return "student"
