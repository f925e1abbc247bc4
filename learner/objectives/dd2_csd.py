"""Distilled Decoding 2, stage 2: conditional score distillation (arXiv 2510.21003, equations 4 and
5, algorithm 3; docs/one_step.md, "Losses").

Workers run the one-step generator, the teacher says its distribution of every slot given what the
generator made before it, and two networks are trained in turns (learner/alternation.py): K times
the guidance network, on what the generator made, so that it knows the generator's score; then once
the generator, which makes its rows again from their seeds, with gradient, and makes the distance of
both scores smaller. What is before a slot has no gradient.

Shape letters: B sequences, L slots, D code width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.provenance import STUDENT, Policy
from common.exchange.trajectory import TrajectoryBatch
from common.models.generator import gaussian
from learner.alternating_config import AlternatingConfig
from learner.objective import Objective, Reading, SequenceRows, Student
from learner.resources import Resources
from learner.score_losses.denoisers import of_network
from learner.score_losses.losses import (
    PositionWeights,
    ScoreDistance,
    by_vectors_alone,
    fake_score_loss,
)
from learner.score_objective import ScoreObjective


class Config(AlternatingConfig):
    distance: ScoreDistance = ScoreDistance()
    """Of the two scores."""
    position: PositionWeights = PositionWeights()
    """Of slots, for the generator."""

    def build(self, resources: Resources) -> Objective:
        return GeneratorsScore(self, resources)

    def build_guidance(self, resources: Resources) -> Objective:
        return GuidanceScore(self, resources)

    def uses(self, policy: Policy) -> bool:
        return policy == STUDENT

    def check(self, shares: Mapping[Policy, float]) -> None:
        others = sorted(policy for policy, share in shares.items() if share and policy != STUDENT)
        if others or not shares.get(STUDENT):
            raise InputError(
                "objective.kind=dd2_csd learns from the generator's own sequences, but "
                f"contexts.sources has {', '.join(others) or 'none'}; have contexts.sources.student"
                " alone"
            )


class GuidanceScore(ScoreObjective):
    """Of the vectors that the generator made; the teacher is not asked."""

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        return Reading(self.network(student).features(condition_B, made(batch)))

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        model, points = self.network(rows.student), self.points(rows.batch)
        return fake_score_loss(model, rows.hidden_BLC, made(rows.batch), points).mean(1)


class GeneratorsScore(ScoreObjective):
    """Through what the teacher and the guidance network say of the generator's vectors."""

    def __init__(self, config: Config, resources: Resources) -> None:
        super().__init__(config, resources)
        self._config, self._guidance = config, resources.guidance

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        """The rows again, with gradient.

        Raises:
            InputError: they come out otherwise than the workers made them.
        """
        model = self.network(student)
        if batch.seed_B is None or bool((batch.seed_B < 0).any()):
            raise InputError(
                "objective.kind=dd2_csd was given rows without the seeds that the generator made "
                "them from"
            )
        noise_BLD = gaussian(batch.seed_B.tolist(), batch.spec.length, model.code_width)
        again = model(condition_B, noise_BLD.to(condition_B.device))
        self._require_same(again.token_BL, batch)
        with torch.no_grad():
            feature_BLC = self._guidance.features(condition_B, again.vector_BLD.float())
        return Reading(feature_BLC, {"vector": again.vector_BLD})

    def _require_same(self, token_BL: Tensor, batch: TrajectoryBatch) -> None:
        apart = float((token_BL != batch.token_BL).float().mean())
        if apart > self._config.mismatch:
            raise InputError(
                f"objective.kind=dd2_csd: {apart:.1%} of the tokens of images "
                f"{int(batch.id_B.min())} to {int(batch.id_B.max())} come out otherwise when the "
                f"learner makes them again (objective.mismatch allows {self._config.mismatch:.1%})"
                "; let workers and learner compute in float32 on devices of one kind"
            )

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        vector_BLD, points = rows.beside["vector"], self.points(rows.batch)
        teacher, guidance = self.teacher(rows), of_network(self._guidance, rows.hidden_BLC)
        weight_L = self._config.position.weights(rows.batch.spec).to(vector_BLD.device)

        def loss(vector_BLD: Tensor) -> Tensor:
            loss_BL = self._config.distance.loss(vector_BLD, teacher, guidance, points)
            return (weight_L * loss_BL).mean(1)

        # The guidance network has gradients of its own, in its own steps.
        return by_vectors_alone(vector_BLD, loss)


def made(batch: TrajectoryBatch) -> Tensor:
    """vector_BLD that the generator made."""
    if batch.vector_BLD is None:
        raise InputError(
            "objective.kind=dd2_csd was given rows without the vectors that the generator made"
        )
    return batch.vector_BLD
