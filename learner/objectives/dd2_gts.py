"""Distilled Decoding 2, stage 1: tuning by the teacher's own score (arXiv 2510.21003, equation 6;
docs/one_step.md, "Losses"). The student is an autoregressive diffusion model: of a noisy vector of
a slot, after the teacher's codes before it, it learns the velocity that the teacher's distribution
has in closed form. Rows are sampled by the teacher, with or without the seeds of noise; stage 2
(`dd2_csd`) begins with what is learned here.

Shape letters: B sequences, L slots.
"""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from common.errors import InputError
from common.exchange.provenance import TEACHER, Policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.velocity_model import VelocityModel
from learner.objective import Objective, Reading, SequenceRows, Student
from learner.resources import Resources
from learner.score_losses.losses import ground_truth_score_loss
from learner.score_objective import ScoreConfig, ScoreObjective


class Config(ScoreConfig):
    trains: Literal["all", "head"] = "all"
    """head: what the teacher gave stays as it is, and only the new head learns (published for VAR,
    before all of it does)."""

    def freeze(self, student: Student) -> None:
        if self.trains == "head" and isinstance(student, VelocityModel):
            student.network.requires_grad_(False)

    def build(self, resources: Resources) -> Objective:
        return TeachersScore(self, resources)

    def uses(self, policy: Policy) -> bool:
        return policy == TEACHER

    def check(self, shares: Mapping[Policy, float]) -> None:
        others = sorted(policy for policy, share in shares.items() if share and policy != TEACHER)
        if others or not shares.get(TEACHER):
            raise InputError(
                "objective.kind=dd2_gts learns from the teacher's sequences, but contexts.sources "
                f"has {', '.join(others) or 'none'}; have contexts.sources.teacher alone"
            )


class TeachersScore(ScoreObjective):
    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        return Reading(self.network(student).features(condition_B, self.code_vectors(batch)))

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        model, points = self.network(rows.student), self.points(rows.batch)
        vector_BLD, teacher = self.code_vectors(rows.batch), self.teacher(rows)
        loss_BL = ground_truth_score_loss(model, rows.hidden_BLC, vector_BLD, teacher, points)
        return loss_BL.mean(1)
