"""Self-autoregressive refinement (SAR, arXiv 2512.06421; docs/method.md, "Staggered scales"), for
next-scale students without a teacher.

    -log q(x_t | x)  on data,    -sigma log q(y_t | own codes)  on staggered rows,

where y are the student's own hard predictions behind the true coarser scales (the paper's
"contrastive student forcing"), the data's codes, or codes that put its own right
(`contexts.sources.stagger.target`). They are codes of a record, so no gradient reaches them. The
first scale has nothing of its own before it, and no second loss. All of them average over true
scales that the own ones do not determine, which biases the fixed point by as much as sigma; with a
teacher, whose distribution behind the same own codes has no such bias, use any of its objectives on
staggered rows instead.

Losses are per token, so nothing depends on chunks, micro-batches or ranks.
"""

from typing import ClassVar

import torch
from torch import Tensor

from common.config.quantities import Weight
from common.exchange.trajectory import TrajectoryBatch
from learner.objective import PlainObjective, TokenChunk
from learner.process_group import ProcessGroup
from learner.token_weights import ObjectiveState, TokenWeights


class Config(PlainObjective):
    needs_teacher: ClassVar[bool] = False
    is_scored: ClassVar[bool] = False
    learns_labels: ClassVar[bool] = True

    sigma: Weight = 0.01
    """Weight of staggered rows; 0 leaves teacher forcing."""

    def support(self, batch: TrajectoryBatch) -> Tensor:
        slot_L = torch.arange(batch.token_BL.shape[1], device=batch.token_BL.device)
        first_L = slot_L < batch.plan.starts[1]
        return super().support(batch) & ~(first_L & batch.on_policy_B[:, None])

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        idle_B1 = batch.on_policy_B[:, None] & (self.sigma == 0)
        return TokenWeights((support_BL & ~idle_B1).float(), support_BL, support_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        weight = self.sigma if chunk.is_on_policy else 1.0
        return -weight * chunk.student_token_N
