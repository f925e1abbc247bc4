"""Ground-truth sequences, k = T: teacher-forced distillation (VarKD eq. 2)."""

from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.context import ContextConfig


class Config(ContextConfig):
    def prefix(self, index: int, draws: Draws, *, spec: SequenceSpec, step: int) -> int:
        return spec.length
