"""From unweighted losses to the step's one number: denominators over all micro-batches and ranks.

Shape letters: B sequences, L slots, X contexts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from learner.token_weights import TokenWeights


@dataclass(frozen=True, slots=True)
class Coefficients:
    """What losses are multiplied with, so that their sum over all ranks is the step's loss."""

    token_BL: Tensor
    sequence_B: Tensor | None = None
    """Of whole rows; None where the objective has no loss of whole rows."""

    def rows(self, chosen: slice) -> "Coefficients":
        """A view of some sequences."""
        sequence_B = None if self.sequence_B is None else self.sequence_B[chosen]
        return Coefficients(self.token_BL[chosen], sequence_B)


def coefficients(
    reduction: str,
    token_weights: TokenWeights,
    contexts: tuple[str, ...],
    known: tuple[str, ...],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Tensor:
    """coefficient_BL such that the sum of coefficient * loss over all ranks is the step's loss.

    Each context is reduced by itself and weighted by its share of the rows, so that a batch that
    mixes contexts has the expectation of step-wise mixing. Denominators are global: they cover
    all micro-batches and ranks.
    """
    weight_BL, support_BL = token_weights.weight_BL, token_weights.support_BL
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


def sequence_coefficients(weight_B: Tensor, sum_over_ranks: Callable[[Tensor], Tensor]) -> Tensor:
    """coefficient_B such that the sum of coefficient * loss over all ranks is the mean over rows.

    The denominator is the number of all rows of the step, also of those that have no loss, as
    `seq_mean` has it for tokens: so every context counts by its share of the rows.
    """
    rows = sum_over_ranks(torch.tensor([len(weight_B)], dtype=torch.double, device=weight_B.device))
    return weight_B / rows.to(weight_B.dtype)
