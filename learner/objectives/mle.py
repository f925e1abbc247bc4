"""Maximum likelihood on data sequences: -log q(x_t | x_<t). Used to pretrain; needs no teacher."""

from typing import ClassVar

from torch import Tensor

from learner.objective import PlainObjective, TokenChunk


class Config(PlainObjective):
    needs_teacher: ClassVar[bool] = False
    uses_rollouts: ClassVar[bool] = False

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        return -chunk.student_token_N
