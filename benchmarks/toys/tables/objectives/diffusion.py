"""What stage 1 of Distilled Decoding 2 is compared with: the ordinary diffusion loss, whose target
is the noise that was drawn and not the mean of what it may have been."""

from torch import Tensor

from learner.objective import Objective, SequenceRows
from learner.objectives import dd2_gts
from learner.resources import Resources
from learner.score_losses.losses import fake_score_loss


class Config(dd2_gts.Config):
    def build(self, resources: Resources) -> Objective:
        return DrawnNoise(self, resources)


class DrawnNoise(dd2_gts.TeachersScore):
    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        model, points = self.network(rows.student), self.points(rows.batch)
        vector_BLD = self.code_vectors(rows.batch)
        return fake_score_loss(model, rows.hidden_BLC, vector_BLD, points).mean(1)
