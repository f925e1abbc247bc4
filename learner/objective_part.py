"""One term of an objective's loss, for the part of a gradient that is its own."""

from collections.abc import Callable

from torch import Tensor

from common.exchange.trajectory import TrajectoryBatch
from learner.objective import Objective, ObjectiveConfig, Reading, SequenceRows, Student, TokenChunk


class Part(Objective):
    """Read and weighted as the whole is."""

    def __init__(
        self,
        whole: Objective,
        loss: Callable[[TokenChunk], Tensor],
        *,
        of_sequences: bool = True,
    ) -> None:
        """`of_sequences`: whether the whole's `sequence_loss`, if it has one, belongs to it."""
        self._whole, self._loss = whole, loss
        self._of_sequences = of_sequences

    @property
    def config(self) -> ObjectiveConfig:
        return self._whole.config

    def read(self, student: Student, condition_B: Tensor, batch: TrajectoryBatch) -> Reading:
        return self._whole.read(student, condition_B, batch)

    def token_loss(self, chunk: TokenChunk) -> Tensor:
        return self._loss(chunk)

    @property
    def has_sequence_loss(self) -> bool:
        return self._of_sequences and self._whole.has_sequence_loss

    def sequence_loss(self, rows: SequenceRows) -> Tensor:
        return self._whole.sequence_loss(rows)
