"""Ground-truth sequences, k = T: teacher-forced distillation (VarKD eq. 2)."""

from common.backbone import SequenceSpec
from common.ledger import Draws
from rollout.context import ContextConfig


class Config(ContextConfig):
    def prefix(self, index: int, draws: Draws, *, spec: SequenceSpec, step: int) -> int:
        return spec.length
