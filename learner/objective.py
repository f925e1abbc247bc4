"""The contract of a distillation objective.

An objective is its own frozen config and callable on a chunk of tokens; which tokens count, and
how much, it says beforehand for a whole batch. Everything else (chunking, denominators across
micro-batches and ranks) is shared.

Shape letters: B sequences, L slots, N tokens of a chunk, V codes, X contexts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from common.plugins import PluginConfig
from common.trajectory import OFF_POLICY, TrajectoryBatch
from learner.gate import Weighing
from learner.relaxation import ClusterMap, RelaxationConfig


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens of one context: codes, log-probabilities of student (with gradient) and teacher."""

    context: str
    token_N: Tensor
    student_NV: Tensor
    teacher_NV: Tensor | None
    clusters: ClusterMap | None

    @property
    def required_teacher_NV(self) -> Tensor:
        if self.teacher_NV is None:
            raise ValueError("this objective needs scored records; send them to the teacher first")
        return self.teacher_NV


class ObjectiveConfig(PluginConfig, ABC):
    needs_teacher: ClassVar[bool] = True

    reduction: Literal["suffix_mean", "seq_mean", "weight_norm"] = "suffix_mean"
    """Divide by all suffix tokens, by each sequence's, or by the sum of weights (method.md 2.5)."""

    def relaxation_config(self) -> RelaxationConfig | None:
        """Which cluster map the objective wants to find in its chunks."""
        return None

    def weigh(self, batch: TrajectoryBatch) -> Weighing:
        """Weight of every token; tokens of weight 0 are never computed."""
        support_BL = support(batch)
        return Weighing(support_BL.float(), support_BL, support_BL)

    @abstractmethod
    def __call__(self, chunk: TokenChunk) -> Tensor:
        """Unweighted loss_N of the chunk's tokens."""


def off_policy(batch: TrajectoryBatch) -> Tensor:
    """True for rows that are whole data sequences."""
    flags = [name == OFF_POLICY for name in batch.context]
    return torch.tensor(flags, device=batch.token_BL.device)


def support(batch: TrajectoryBatch) -> Tensor:
    """Slots that an objective may use: all of a data row, the suffix of any other."""
    return batch.suffix_BL | off_policy(batch)[:, None]


def coefficients(
    reduction: str,
    weighing: Weighing,
    contexts: tuple[str, ...],
    known: tuple[str, ...],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Tensor:
    """coefficient_BL such that the sum of coefficient * loss over all ranks is the step's loss.

    Each context is reduced by itself and weighted by its share of the rows, so that a batch that
    mixes contexts has the expectation of step-wise mixing. Denominators are global: they cover
    all micro-batches and ranks.
    """
    weight_BL, support_BL = weighing.weight_BL, weighing.support_BL
    context_B = torch.tensor([known.index(name) for name in contexts], device=weight_BL.device)
    member_BX = torch.nn.functional.one_hot(context_B, len(known)).double()
    per_row = torch.stack(
        [
            torch.ones_like(context_B, dtype=torch.double),
            support_BL.sum(1).double(),
            weight_BL.sum(1).double(),
        ],
        dim=1,
    )
    total_X3 = sum_over_ranks(member_BX.T @ per_row)
    share_X = total_X3[:, 0] / total_X3[:, 0].sum()
    if reduction == "seq_mean":
        scale_B = 1 / (support_BL.sum(1).clamp_min(1) * total_X3[:, 0].sum())
    elif reduction == "weight_norm":
        scale_B = (share_X / total_X3[:, 2].clamp_min(1e-8))[context_B]
    else:
        scale_B = (share_X / total_X3[:, 1].clamp_min(1))[context_B]
    return weight_BL * scale_B[:, None].to(weight_BL.dtype)
