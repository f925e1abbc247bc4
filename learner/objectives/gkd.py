"""Generalised knowledge distillation (arXiv 2306.13649): one divergence on every context.

(1 - lambda) E_data[D(p, q)] + lambda E_student[D(p, q)], docs/method.md, "Baselines", without a
gradient through sampling.

The mixture of data and student contexts is `contexts.sources`; lambda is the student's share.
jsd with beta 0 is forward KL and with beta 1 reverse KL, exactly.
"""

from torch import Tensor

from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk


class Config(PlainObjective):
    divergence: Divergence = Divergence(name="jsd", beta=0.5)
    """VarKD runs its GKD baseline with jsd, beta 0.5."""

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        return self.divergence.between(chunk.student, chunk.required_teacher)
