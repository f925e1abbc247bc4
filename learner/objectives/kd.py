"""Knowledge distillation (Hinton et al., arXiv 1503.02531, section 2): soft targets and labels.

(1 - a) CE + a T^2 KL(p^(1/T) || q^(1/T)). VarKD's KD baseline (its eq. 2) is the default: forward
KL over the full vocabulary, without temperature or label term. On rollouts there are no labels,
so only the second term is left.
"""

from torch import Tensor

from common.config.quantities import Probability, Temperature
from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk

FORWARD_KL = Divergence(name="fkl")


class Config(PlainObjective):
    temperature: Temperature = 1.0
    """Divides the logits of both models; the loss is multiplied by its square."""
    alpha: Probability = 1.0
    """Weight of the teacher's soft targets; the rest is cross-entropy with the codes of
    data or of the teacher's samples."""

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        student = chunk.student.tempered(self.temperature)
        teacher = chunk.required_teacher.tempered(self.temperature)
        loss_N = self.alpha * self.temperature**2 * FORWARD_KL.between(student, teacher)
        if self.alpha < 1 and not chunk.is_on_policy:
            loss_N = loss_N - (1 - self.alpha) * chunk.student_token_N
        return loss_N
