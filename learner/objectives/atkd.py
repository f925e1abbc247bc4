"""ATKD (arXiv 2402.11890; docs/method.md, "Baselines"): easy tokens teach diversity, hard ones the
target too.

KL(p || q) = TKD + UNC * DKD with UNC = 1 - p(y_t), TKD the KL between {y_t, rest} and DKD the KL
between what is left of p and q without y_t. Tokens with UNC below the median of the step are easy
and have the loss share * DKD; the others have (1 - share) * (TKD + DKD).

The median is over all tokens of all ranks, so the split into easy and hard is exact.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from common.config.quantities import Probability
from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import Divergence
from learner.objective import PlainObjective, TokenChunk
from learner.process_group import ProcessGroup, gather
from learner.teacher_targets import Quantity, token_logprob
from learner.token_weights import ObjectiveState, TokenWeights

FORWARD_KL = Divergence(name="fkl")
NEVER = -1e9
"""Log-probability of a code that is left out; finite, so that 0 * log 0 is 0."""


class Config(PlainObjective):
    columns: ClassVar[tuple[str, ...]] = ("easy",)

    easy_share: Probability = 0.2
    """Weight of the easy tokens (the paper's lambda); hard ones have the rest."""

    def reads_entropy(self) -> bool:
        return False

    def reads(self) -> Mapping[str, Quantity]:
        return {"token_logprob": token_logprob}

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        support_BL = self.support(batch)
        uncertainty_BL = -batch.signal["token_logprob"].expm1()
        median = gather(ranks, uncertainty_BL, support_BL).quantile(0.5)
        column = {"easy": (uncertainty_BL < median).float()}
        return TokenWeights(support_BL.float(), support_BL, support_BL, column)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        student_N2, student_NV = _without_target(chunk.student_NV, chunk.token_N)
        teacher_N2, teacher_NV = _without_target(chunk.required_teacher_NV, chunk.token_N)
        target_N = FORWARD_KL(student_N2, teacher_N2)
        diversity_N = FORWARD_KL(student_NV, teacher_NV)
        easy_N = self.easy_share * diversity_N
        hard_N = (1 - self.easy_share) * (target_N + diversity_N)
        return torch.where(chunk.column["easy"] > 0, easy_N, hard_N)


def _without_target(logprob_NV: Tensor, token_N: Tensor) -> tuple[Tensor, Tensor]:
    """log [P(token), P(any other)], and the distribution over the others."""
    token_N1 = token_N[:, None]
    others_NV = logprob_NV.scatter(-1, token_N1, NEVER)
    rest_N1 = others_NV.logsumexp(-1, keepdim=True)
    return torch.cat([logprob_NV.gather(-1, token_N1), rest_N1], dim=-1), others_NV - rest_N1
