"""MiniLLM (arXiv 2306.08543, section 2.2): the reverse KL of whole sequences by policy gradient.

With r_t = log p(y_t) - log q(y_t) the loss of a rollout's token is, in both forms,

    KL(q_t || p_t) - min(rho_t sg[A_t], clip(rho_t, 1 - e, 1 + e) sg[A_t]),
    rho_t = q(y_t) / q_old(y_t):

the exact single-step term, and PPO's clipped policy gradient for what y_t leads to.

- `form = "paper"`, equations of the paper: A_t is the mean of r over the tokens after y_t, and
  data sequences have the language-modelling loss -log q(x_t). Without `length_normalised` and
  `clip` the expected on-policy gradient is exactly that of the sequence-level divergence.
- `form = "official"`, the authors' code (microsoft/LMOps, minillm/losses.py and sampler.py, with
  the values of its scripts and argument defaults): r_t is clipped to +-50 and belongs to its own
  return, R_t = sum_{t' >= t} 0.95^(t' - t) r_t', which is divided by the number of tokens from t on
  and whitened over the rollout tokens of the step (there: of one micro-batch on all processes).
  So A_t has mean 0 whatever the teacher says, and its expected gradient is no divergence's. Data
  sequences have half language-modelling loss, half cross-entropy with the teacher.

rho_t is also the importance weight of teacher-mixed sampling, since q_old is whatever drew the
token. Returns are sums over one sequence, made before it is cut, and whitening sums over all
ranks, so nothing depends on chunks, micro-batches or ranks. q in r_t is the distribution that drew
the token: rollouts at another temperature or with guidance bias it.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from common.config.quantities import Probability, Weight
from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk
from learner.policy_gradient import surrogate
from learner.process_group import ProcessGroup
from learner.returns import log_ratio, returns, whitened
from learner.teacher_targets import Quantity, token_logprob
from learner.token_weights import ObjectiveState, TokenWeights

OFFICIAL_DISCOUNT, OFFICIAL_KD_SHARE, OFFICIAL_REWARD_CLIP = 0.95, 0.5, 50.0
"""Of the official code: --gamma, --kd-ratio, and --cliprange-reward times --reward-scaling."""


REVERSE_KL = Divergence(name="rkl")


class Config(PlainObjective):
    columns: ClassVar[tuple[str, ...]] = ("return", "behaviour")

    form: Literal["paper", "official"] = "paper"
    """paper: means of what comes after a token; official: the authors' code, whose returns hold
    the token itself, are discounted by 0.95 and whitened, and whose data loss is half KD."""
    length_normalised: bool = True
    """Divide the return by the number of its tokens, so that early ones don't dominate."""
    clip: Weight = 0.2
    """PPO's clipping of the ratio to [1 - clip, 1 + clip]; 0 switches it off."""
    kd_share: Probability | None = None
    """Share of cross-entropy with the teacher in the loss of data sequences, the rest is that with
    their codes; by default 0 in the paper's form and 0.5 in the official one."""

    @property
    def _kd_share(self) -> float:
        default = OFFICIAL_KD_SHARE if self.form == "official" else 0.0
        return default if self.kd_share is None else self.kd_share

    def reads_entropy(self) -> bool:
        return False

    def reads(self) -> Mapping[str, Quantity]:
        return {"token_logprob": token_logprob}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        reward_BL = log_ratio(batch, batch.suffix_BL)
        last = reward_BL.shape[1] - 1
        after_L = last - torch.arange(last + 1, device=reward_BL.device)
        if self.form == "official":
            reward_BL = reward_BL.clamp(-OFFICIAL_REWARD_CLIP, OFFICIAL_REWARD_CLIP)
            return_BL, count_L = returns(reward_BL, OFFICIAL_DISCOUNT), after_L + 1
        else:
            return_BL, count_L = returns(reward_BL, 1.0) - reward_BL, after_L.clamp_min(1)
        if self.length_normalised:
            return_BL = return_BL / count_L
        if self.form == "official":
            return_BL = whitened(return_BL, batch.rollout_BL, ranks)
        column = {"return": return_BL, "behaviour": batch.logprob_BL}
        return TokenWeights(support_BL.float(), support_BL, support_BL, column)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        if not chunk.is_on_policy:
            return self._data_loss(chunk)
        return_N = chunk.column["return"]
        ratio_N = (chunk.student_token_N - chunk.column["behaviour"]).exp()
        gain_N = surrogate(ratio_N, return_N, self.clip)
        return REVERSE_KL.between(chunk.student, chunk.required_teacher) - gain_N

    def _data_loss(self, chunk: TokenChunk) -> Tensor:
        loss_N = -(1 - self._kd_share) * chunk.student_token_N
        if self._kd_share:
            soft_N = (chunk.required_teacher_NV.exp() * chunk.student_NV).sum(-1)
            loss_N = loss_N - self._kd_share * soft_N
        return loss_N
