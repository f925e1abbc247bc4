"""SequenceMatch (arXiv 2306.05426): maximum likelihood that looks where the student itself goes.

Logits l are values of actions, V = logsumexp l those of states, and l_t - g V_{t+1} is the reward
that the student implies (V = 0 behind the last slot). With the chi-square divergence on the mixture
of data and rollouts the loss is, up to terms that telescope away,

    -E_data sum_t g^t log q(x_t) + a/4 (E_data + E_rollouts)/2 sum_t g^t (l_t - g V_{t+1})^2,

means over tokens here instead of sums; no gradient goes through what was sampled. No teacher. The
mixture is `contexts.sources`: half and half is the published one, and other shares weigh the two
expectations. The published backspace is left out (docs/method.md, "SequenceMatch").

Shape letters: B sequences, L slots, N tokens of a chunk, V codes.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from common.config.plugins import PluginConfig
from common.config.quantities import Probability, Weight
from common.errors import InputError
from common.exchange.provenance import Policy, is_on_policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import BackboneConfig
from learner.objective import PlainObjective, TokenChunk
from learner.process_group import ProcessGroup
from learner.token_weights import ObjectiveState, TokenWeights


class Config(PlainObjective):
    needs_teacher: ClassVar[bool] = False
    is_scored: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("discount",)

    alpha: Weight = 0.1
    """Strength of the residuals. The larger, the flatter the student: in a table the distance of
    its distribution from the data's was .0015, .015 and .129 for .01, .1 and 1."""
    gamma: Probability = 1.0
    """Discount of what comes later."""

    def check_student(self, student: PluginConfig) -> None:
        super().check_student(student)
        if isinstance(student, BackboneConfig) and not student.has_rows:
            raise InputError(
                "objective.kind=sequencematch compares the value of a slot with that of the next, "
                f"but a {student.kind} decodes several slots at a time; choose a student that "
                "decodes one by one, or another objective"
            )

    def check(self, shares: Mapping[Policy, float]) -> None:
        super().check(shares)
        taught = sum(share for policy, share in shares.items() if not is_on_policy(policy))
        if not taught:
            raise InputError(
                "objective.kind=sequencematch learns its codes from data, but contexts.sources "
                "has rollouts alone; add contexts.sources.data"
            )

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        """Every sequence is a group, so that a slot's next one is in the same chunk."""
        support_BL = self.support(batch)
        row_B1 = torch.arange(len(batch), device=support_BL.device)[:, None]
        place_BL = support_BL.cumsum(1) - 1
        column = {"discount": torch.full_like(place_BL, self.gamma, dtype=torch.float) ** place_BL}
        group_BL = row_B1.expand_as(support_BL)
        return TokenWeights(support_BL.float(), support_BL, support_BL, column, group_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        discount_N = chunk.column["discount"]
        loss_N = torch.zeros_like(discount_N)
        if not chunk.is_on_policy:
            loss_N = -discount_N * chunk.student_token_N
        if not self.alpha:
            return loss_N
        return loss_N + self.alpha / 8 * discount_N * self.residual(chunk).square()

    def residual(self, chunk: TokenChunk) -> Tensor:
        """l_t - g V_{t+1} of every token, (N,)."""
        logit_NV = chunk.student.logit_NV
        value_N = logit_NV.logsumexp(-1)
        ends_N = torch.tensor(chunk.groups or (len(value_N),), device=value_N.device).cumsum(0) - 1
        next_N = value_N.roll(-1).index_fill(0, ends_N, 0.0)
        return logit_NV.gather(-1, chunk.token_N[:, None])[:, 0] - self.gamma * next_N
