"""Mixed rollouts: a ground-truth prefix continued by the student (VarKD eq. 6)."""

from rollout.context import SamplerName
from rollout.prefix import PrefixLaw


class Config(PrefixLaw):
    @property
    def sampler(self) -> SamplerName:
        return "student"
