"""Maximum likelihood on data sequences: -log q(x_t | x_<t). Used to pretrain; needs no teacher."""

from typing import ClassVar

from torch import Tensor

from common.trajectory import TrajectoryBatch
from learner.gate import Weighing
from learner.objective import ObjectiveConfig, TokenChunk, off_policy


class Config(ObjectiveConfig):
    needs_teacher: ClassVar[bool] = False

    def weigh(self, batch: TrajectoryBatch) -> Weighing:
        support_BL = off_policy(batch)[:, None].expand_as(batch.token_BL)
        return Weighing(support_BL.float(), support_BL, support_BL)

    def __call__(self, chunk: TokenChunk) -> Tensor:
        return -chunk.student_NV.gather(-1, chunk.token_N[:, None])[:, 0]
