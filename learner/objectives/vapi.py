"""VA-pi (arXiv 2512.19680; docs/method.md, "VA-pi"): rewards of images, without a rollout.

Rows are draws x^1 .. x^G in all slots from one pass over a noisy data sequence x~
(`contexts.sources.parallel`). A slot has the loss

    -mean_g min(rho_g A_g, clip(rho_g, 1 - e, 1 + e) A_g) + beta R,    rho_g = q(x^g) / q_old(x^g),

q on the same x~. A says how much better than its group a draw's image is (learner/rewards.py), and
R keeps the student usable behind its own mistakes: cross-entropy with the data's code, -log q(x*),
as published, or a divergence from the teacher on the same x~, which is its distillation form.

All draws of a group share x~, so its first row is read once and answers for all of them: the other
rows reach neither the network nor the head. Means are over all draws and slots of the step, so
nothing depends on chunks, micro-batches or ranks. The expected gradient of the reward's part is
(1 - 1/G) times the true one, for a group's mean has the draw itself in it.

Shape letters: B sequences, L slots, N tokens of a chunk, K groups, G draws of each.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from common.config.quantities import Weight
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.models.backbone import Backbone
from learner.divergence import Divergence
from learner.objective import Objective, PlainObjective, Reading, Student, TokenChunk
from learner.objective_part import Part
from learner.policy_gradient import surrogate
from learner.process_group import ProcessGroup
from learner.rewarded_config import RewardedConfig
from learner.rewards import AdvantageConfig, advantages, read, remember
from learner.token_weights import ObjectiveState, TokenWeights


class Config(RewardedConfig, PlainObjective):
    uses_data: ClassVar[bool] = False
    reads_target: ClassVar[bool] = True
    needs_one_input: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("draws", "advantages", "behaviour", "target")
    diagnosed: ClassVar[tuple[str, ...]] = ("regulariser", "clipped")

    rewards: dict[str, Weight] = Field(
        default={"decoded_mse": 1.0, "perceptual": 1.0}, min_length=1
    )
    """Weights by name of what [scorers] write of whole rows; published: both 1."""
    advantage: AdvantageConfig = AdvantageConfig(clip=5.0)
    """How much better than its group a draw did; cut off at +-5, as published."""
    beta: Weight = 0.1
    """Weight of the regulariser; without it the student ends at codes nearest the mean image."""
    regulariser: Literal["ce", "teacher"] = "ce"
    """ce: cross-entropy with the data's codes (no teacher is asked); teacher: `divergence` from the
    teacher, which reads the same noisy sequence."""
    divergence: Divergence = Divergence(name="fkl")
    """Of regulariser=teacher."""

    def asks_teacher(self) -> bool:
        return self.regulariser == "teacher"

    def wants_scores(self) -> bool:
        return self.asks_teacher()

    def reads_entropy(self) -> bool:
        return False

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        rewards = read(batch, self.rewards, per_token=self.per_token)
        remember(state, batch, rewards, self.rewards, ranks)
        advantage_BX = advantages(self.advantage, rewards, ranks).view(len(batch), -1)
        row_KG = _rows(batch)
        support_BL = self.support(batch) & rewards.kept_B[:, None]
        weight_BL = row_KG.shape[1] * (support_BL & _leads(batch)[:, None]).float()
        length = batch.token_BL.shape[1]
        column = {
            "draws": _of_groups(batch.token_BL.int(), row_KG),
            "advantages": _of_groups(advantage_BX.expand(-1, length), row_KG),
            "behaviour": _of_groups(batch.logprob_BL, row_KG),
            "target": batch.target_BL,
        }
        return TokenWeights(weight_BL, support_BL, support_BL, column)

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        if not isinstance(student, Backbone):
            return super().read(student, condition_B, batch)  # which refuses it
        lead_K = _leads(batch).nonzero()[:, 0]
        shape = *batch.token_BL.shape, student.head.in_features
        if not len(lead_K):
            return Reading(torch.zeros(shape, device=lead_K.device))
        own = batch.input_BL[lead_K], batch.plan.rows(lead_K.cpu())
        hidden_KLC = student.features(condition_B[lead_K], *own)
        return Reading(hidden_KLC.new_zeros(shape).index_copy(0, lead_K, hidden_KLC))

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        return self._regularised(chunk) + self._rewarded(chunk)

    def parts(self) -> dict[str, Objective]:
        """The regulariser, as it counts, and the reward."""
        return {"regulariser": Part(self, self._regularised), "reward": Part(self, self._rewarded)}

    def _regularised(self, chunk: TokenChunk) -> Tensor:
        return self.beta * self._regulariser(chunk)

    def _rewarded(self, chunk: TokenChunk) -> Tensor:
        gain_NG = surrogate(self._ratio(chunk), chunk.column["advantages"], self.clip)
        return -gain_NG.mean(-1)

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        outside_NG = (self._ratio(chunk) - 1).abs() > self.clip
        clipped_N = outside_NG.float().mean(-1) * bool(self.clip)
        return {"regulariser": self._regulariser(chunk), "clipped": clipped_N}

    def _ratio(self, chunk: TokenChunk) -> Tensor:
        """rho_NG."""
        logprob_NG = chunk.student_NV.gather(-1, chunk.column["draws"].long())
        return (logprob_NG - chunk.column["behaviour"]).exp()

    def _regulariser(self, chunk: TokenChunk) -> Tensor:
        if self.regulariser == "teacher":
            return self.divergence.between(chunk.student, chunk.required_teacher)
        return -chunk.student_NV.gather(-1, chunk.column["target"][:, None])[:, 0]


def _leads(batch: TrajectoryBatch) -> Tensor:
    """True_B for the first row of every group, which is read for all of it."""
    if batch.member_B is None:
        raise InputError("objective.kind=vapi compares draws, but records have no groups of them")
    return batch.member_B == 0


def _rows(batch: TrajectoryBatch) -> Tensor:
    """row_KG: numbers of the rows of each group, by member.

    Raises:
        InputError: rows of a group were drawn from different inputs.
    """
    leads, group_B, member_B = int(_leads(batch).sum()), batch.group_B, batch.member_B
    assert group_B is not None
    assert member_B is not None
    by_member_B = member_B.argsort(stable=True)
    row_B = by_member_B[group_B[by_member_B].argsort(stable=True)]
    row_KG, input_BL = row_B.view(leads, -1), batch.input_BL
    if not (input_BL[row_KG] == input_BL[row_KG[:, :1]]).all():
        raise InputError(
            "objective.kind=vapi needs draws of a group from one input, but rows of one were "
            "drawn from several; have contexts.sources.parallel alone"
        )
    return row_KG


def _of_groups(value_BL: Tensor, row_KG: Tensor) -> Tensor:
    """Values of all draws, (B, L, G), in the first row of each group; 0 in the others."""
    found_BLG = value_BL.new_zeros(*value_BL.shape, row_KG.shape[1])
    found_BLG[row_KG[:, 0]] = value_BL[row_KG].transpose(1, 2)
    return found_BLG
