"""What the objectives of Distilled Decoding 2 share (arXiv 2510.21003; docs/one_step.md): points on
the way between noise and codes, and the teacher's law of every slot.

Shape letters: B sequences, L slots, N slots of all sequences, M points of a slot.
"""

from typing import ClassVar

import torch
from torch import Tensor

from common.config.plugins import PluginConfig
from common.config.quantities import Count
from common.exchange.trajectory import TrajectoryBatch
from common.flow.laws import FlowCodes
from common.models.filters import FilterConfig, filtered_logprob
from common.models.velocity_model import VelocityModel, VelocityModelConfig
from learner.objective import Objective, ObjectiveConfig, SequenceRows, Student, TokenChunk
from learner.process_group import ProcessGroup
from learner.resources import Resources
from learner.score_losses.denoisers import Denoiser, of_teacher
from learner.score_losses.points import Points, TimeLaw, draw_points
from learner.token_weights import ObjectiveState, TokenWeights


class ScoreConfig(ObjectiveConfig):
    students: ClassVar[type[PluginConfig]] = VelocityModelConfig

    filters: FilterConfig = FilterConfig()
    """What becomes of the teacher's guided logits (teacher.guidance) before a code has a
    probability: as its sampler does it."""
    draws: Count = 1
    """Noisy vectors of every slot of a row."""
    times: TimeLaw = TimeLaw()
    """Their times."""

    def reads_entropy(self) -> bool:
        return False

    def resources(self) -> frozenset[str]:
        return frozenset({"codebook"})


class ScoreObjective(Objective):
    """A loss of whole rows, and of no token by itself."""

    def __init__(self, config: ScoreConfig, resources: Resources) -> None:
        self._settings = config
        self._codes = FlowCodes(resources.codebook_VD.float())

    @property
    def config(self) -> ScoreConfig:
        return self._settings

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        nothing_BL = torch.zeros_like(batch.token_BL, dtype=torch.bool)
        return TokenWeights(nothing_BL.float(), nothing_BL, nothing_BL)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        raise ValueError(f"objective.kind={self.config.kind} has no loss of single tokens")

    def network(self, student: Student) -> VelocityModel:
        """The student as what it is."""
        if not isinstance(student, VelocityModel):
            raise ValueError(
                f"objective.kind={self.config.kind} trains no {type(student).__name__}"
            )
        return student

    def code_vectors(self, batch: TrajectoryBatch) -> Tensor:
        """code_BLD of the rows' tokens."""
        return self._codes.code_VD[batch.token_BL]

    def teacher(self, rows: SequenceRows) -> Denoiser:
        """By the teacher's distribution of every slot's code, given what it read before."""
        logprob_NV = rows.teacher_logprob_BLV.flatten(0, 1)
        return of_teacher(self._codes.law(filtered_logprob(logprob_NV, self._settings.filters)))

    def points(self, batch: TrajectoryBatch) -> Points:
        """Of every slot, a function of the image's id."""
        seeds, width = batch.id_B.tolist(), self._codes.code_VD.shape[1]
        draws, times = self._settings.draws, self._settings.times
        points = draw_points(seeds, batch.spec.length, width, draws=draws, times=times)
        return points.to(batch.token_BL.device)
