"""Knowledge distillation: forward KL to the teacher over the full vocabulary (VarKD eq. 2).

Hinton et al. 2015 without temperature or label term, as VarKD's KD baseline states it.
"""

from torch import Tensor

from learner.divergence import forward_kl
from learner.objective import ObjectiveConfig, TokenChunk


class Config(ObjectiveConfig):
    def __call__(self, chunk: TokenChunk) -> Tensor:
        return forward_kl(chunk.student_NV, chunk.required_teacher_NV)
