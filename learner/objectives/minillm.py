"""MiniLLM (arXiv 2306.08543, section 2.2): the reverse KL of whole sequences by policy gradient.

With r_t = log p(y_t) - log q(y_t) and R_{t+1} = sum_{t' > t} r_t', the gradient of
KL(q(y) || p(y)) is that of

    sum_t KL(q_t || p_t) - rho_t sg[R_{t+1}],    rho_t = q(y_t) / q_old(y_t):

the exact single-step term, and a policy gradient for what y_t leads to. As published, R_{t+1} is
divided by the number of later tokens and the ratio is clipped as in PPO; switch both off and the
expected on-policy gradient is exactly that of the sequence-level divergence. rho_t is also the
importance weight of teacher-mixed sampling, since q_old is whatever drew the token. Data sequences
have the language-modelling loss -log q(x_t).

Returns are sums over one sequence, made before it is cut, so nothing depends on chunks,
micro-batches or ranks. q in r_t is the distribution that drew the token: rollouts at another
temperature or with guidance bias it.
"""

from typing import ClassVar

import torch
from torch import Tensor

from common.quantities import Weight
from common.trajectory import TrajectoryBatch, is_on_policy
from learner.divergence import reverse_kl
from learner.objective import ObjectiveConfig, TokenChunk
from learner.ranks import Ranks
from learner.returns import log_ratio, returns
from learner.weighing import Memory, Weighing


class Config(ObjectiveConfig):
    columns: ClassVar[tuple[str, ...]] = ("return", "behaviour")

    length_normalised: bool = True
    """Divide the return by the number of later tokens, so that early ones don't dominate."""
    clip: Weight = 0.2
    """PPO's clipping of the ratio to [1 - clip, 1 + clip]; 0 switches it off."""

    def reads(self) -> frozenset[str]:
        return frozenset({"token_logprob"})

    def weigh(self, batch: TrajectoryBatch, memory: Memory, ranks: Ranks) -> Weighing:
        support_BL = self.support(batch)
        reward_BL = log_ratio(batch, batch.suffix_BL)
        later_BL = returns(reward_BL, discount=1.0) - reward_BL
        if self.length_normalised:
            count_L = torch.arange(later_BL.shape[1], device=later_BL.device).flip(0)
            later_BL = later_BL / count_L.clamp_min(1)
        column = {"return": later_BL, "behaviour": batch.logprob_BL}
        return Weighing(support_BL.float(), support_BL, support_BL, column)

    def __call__(self, chunk: TokenChunk) -> Tensor:
        if not is_on_policy(chunk.context):
            return -chunk.student_token_N
        later_N = chunk.column["return"]
        ratio_N = (chunk.student_token_N - chunk.column["behaviour"]).exp()
        gain_N = ratio_N * later_N
        if self.clip:
            clipped_N = ratio_N.clamp(1 - self.clip, 1 + self.clip)
            gain_N = torch.minimum(gain_N, clipped_N * later_N)
        return reverse_kl(chunk.student_NV, chunk.required_teacher_NV) - gain_N
