"""The tokens of one context that have a loss, gathered from a batch and cut into chunks.

Shape letters: B sequences, L slots, N selected tokens, n tokens of a chunk, C width, V codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.trajectory import TrajectoryBatch
from learner.objective import TokenChunk
from learner.relaxation import ClusterMap
from learner.weighing import Weighing


@dataclass(frozen=True, slots=True)
class Selection:
    """Codes, loss coefficients, teacher signal and the objective's columns, each (N, ...)."""

    context: str
    active_BL: Tensor
    token_N: Tensor
    coefficient_N: Tensor
    signal: dict[str, Tensor]
    column: dict[str, Tensor]
    group_N: Tensor | None

    def groups(self, tokens: slice = slice(None)) -> tuple[int, ...]:
        """Sizes of the groups among some tokens."""
        if self.group_N is None:
            return ()
        sizes = torch.unique_consecutive(self.group_N[tokens], return_counts=True)[1]
        return tuple(sizes.tolist())

    def signal_of(self, tokens: slice) -> dict[str, Tensor]:
        """The teacher's columns of some tokens."""
        return {name: value[tokens] for name, value in self.signal.items()}

    def chunk(
        self,
        tokens: slice,
        student_nV: Tensor,
        teacher_nV: Tensor | None,
        clusters: ClusterMap | None,
    ) -> TokenChunk:
        """What the objective sees of some tokens."""
        column = {name: value[tokens] for name, value in self.column.items()}
        groups = self.groups(tokens)
        return TokenChunk(
            self.context, self.token_N[tokens], student_nV, teacher_nV, clusters, column, groups
        )


def select(
    context: str, batch: TrajectoryBatch, weighing: Weighing, coefficient_BL: Tensor
) -> Selection:
    """Tokens of `context` whose coefficient is not 0, in order of sequence and slot."""
    member_B = torch.tensor([name == context for name in batch.context])
    active_BL = (coefficient_BL != 0) & member_B.to(coefficient_BL.device)[:, None]
    return Selection(
        context,
        active_BL,
        batch.token_BL[active_BL],
        coefficient_BL[active_BL],
        {name: value[active_BL] for name, value in batch.signal.items()},
        {name: value[active_BL] for name, value in weighing.column.items()},
        None if weighing.group_BL is None else weighing.group_BL[active_BL],
    )
