"""The other learner processes, as one rank sees them."""

from typing import Protocol

import torch
from torch import Tensor


class ProcessGroup(Protocol):
    """The other learner processes; all of them make the same calls in the same order."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all ranks, on every rank, in place and returned.

        All bring the same shape and type. Summed in the type that it has: bring float64 where
        rounding counts. Waits for the slowest rank.

        Raises:
            RuntimeError: a rank left.
        """
        ...

    def barrier(self) -> None:
        """Wait until every rank is here.

        Raises:
            RuntimeError: a rank left.
        """
        ...


class SingleProcess:
    """A learner without company."""

    rank = 0
    world = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def barrier(self) -> None: ...


def gather(ranks: ProcessGroup, value: Tensor, counted: Tensor) -> Tensor:
    """The counted values of all ranks, flat and in rank order, float64.

    Every rank brings a tensor of the same shape. A sum of disjoint slots, so exact; values that
    are not counted travel as NaN.
    """
    slots = torch.zeros(ranks.world * value.numel(), dtype=torch.double, device=value.device)
    mine = slice(ranks.rank * value.numel(), (ranks.rank + 1) * value.numel())
    slots[mine] = value.double().masked_fill(~counted, torch.nan).flatten()
    found = ranks.sum_(slots)
    return found[~found.isnan()]


def sum_gradients(grads: list[Tensor], ranks: ProcessGroup) -> None:
    """Add up over ranks in one flat message; coefficients are global already, so sum, not mean."""
    flat = ranks.sum_(torch.cat([grad.flatten() for grad in grads]))
    first = 0
    for grad in grads:
        grad.copy_(flat[first : first + grad.numel()].view_as(grad))
        first += grad.numel()
