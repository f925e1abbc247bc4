"""Entropy-aware on-policy distillation (arXiv 2603.07079; docs/method.md, "Reliability", a
third-party note).

RKL + 1[H(p_t) > threshold] FKL_top16: forward KL is added where the teacher is unsure, so that the
student keeps its alternatives. VarKD takes weight away in the same place. Published entropies of
image tokens are 5 to 8 nats, so the language-model threshold of 0.8 adds the term nearly always.
"""

from torch import Tensor

from common.config.quantities import Nats
from common.exchange.entropy import entropy_of
from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk


class Config(PlainObjective):
    threshold: Nats = 0.8
    """Teacher entropy, in nats, above which the second divergence is added."""
    divergence: Divergence = Divergence(name="rkl")
    """On every token."""
    unsure: Divergence = Divergence(name="fkl", top_k=16)
    """Added where the teacher is unsure; the notes don't say how the 16 codes are normalised, so
    all others count as one more."""

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        student_NV, teacher_NV = chunk.student_NV, chunk.required_teacher_NV
        unsure_N = entropy_of(teacher_NV) > self.threshold
        added_N = unsure_N * self.unsure(student_NV, teacher_NV)
        return self.divergence(student_NV, teacher_NV) + added_N
