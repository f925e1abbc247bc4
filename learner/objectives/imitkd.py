"""ImitKD (arXiv 2009.07253; docs/method.md, "Baselines"): imitate what the teacher would do next.

-log q(argmax p) in every context, or KL(p_k || q) to the teacher's k likeliest codes, renormalised.
The annealed mixture of data and student contexts is `contexts.sources`.
"""

from torch import Tensor

from common.config.quantities import CodesOrAll
from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk

FORWARD_KL = Divergence(name="fkl")


class Config(PlainObjective):
    top_k: CodesOrAll = 1
    """Codes of the soft label; 1 is the teacher's best alone (the paper's), 0 takes all."""

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        teacher_NV = chunk.required_teacher_NV
        if not 0 < self.top_k < teacher_NV.shape[-1]:
            return FORWARD_KL(chunk.student_NV, teacher_NV)
        best = teacher_NV.topk(self.top_k, dim=-1)
        return FORWARD_KL(chunk.student_NV.gather(-1, best.indices), best.values.log_softmax(-1))
