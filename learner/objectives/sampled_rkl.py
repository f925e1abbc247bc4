"""On-policy distillation from the sampled codes alone (Thinking Machines Lab, 2025).

A policy gradient with the advantage A_t = -kappa (log q_old(y_t) - log p(y_t)) and importance
sampling: the loss is -(q(y_t) / q_old(y_t)) sg[A_t], with q_old the distribution that drew y_t.
On-policy (q = q_old, no dropout) its expected gradient is that of KL(q || p) per token, exactly;
a single batch has the variance of one sample. Discount 0 as published: a later token's divergence
is no reason to avoid this one.

Advantages are numbers of one token, so nothing depends on chunks, micro-batches or ranks. Data
sequences hold no samples of the student and have no loss.
"""

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from common.config.quantities import Factor, Probability
from common.exchange.trajectory import TrajectoryBatch
from learner.objective import PlainObjective, TokenChunk
from learner.process_group import ProcessGroup
from learner.returns import log_ratio, returns
from learner.teacher_targets import Quantity, token_logprob
from learner.token_weights import ObjectiveState, TokenWeights


class Config(PlainObjective):
    uses_data: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("advantage", "behaviour")

    kappa: Factor = 1.0
    """Scale of the advantage."""
    discount: Probability = 0.0
    """How much of the later advantages a token is credited with."""

    def reads_entropy(self) -> bool:
        return False

    def reads(self) -> Mapping[str, Quantity]:
        return {"token_logprob": token_logprob}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        advantage_BL = self.kappa * returns(log_ratio(batch, support_BL), self.discount)
        column = {"advantage": advantage_BL, "behaviour": batch.logprob_BL}
        return TokenWeights(support_BL.float(), support_BL, support_BL, column)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        ratio_N = (chunk.student_token_N - chunk.column["behaviour"]).exp()
        return -ratio_N * chunk.column["advantage"]
