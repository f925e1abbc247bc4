"""How a grid of visual tokens is split into decoding steps.

Shape letters: B sequences, L slots in a sequence, n slots in the current step.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class DecodePlan:
    """The order in which grid positions are filled.

    Slot i of sequence b fills grid position order_BL[b, i]. Slots are grouped into steps; every
    slot of a step is predicted by the same forward pass. Raster, ZipAR, next-scale and
    random-order decoding differ only in these two fields.
    """

    order_BL: Tensor
    step_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        length = self.order_BL.shape[1]
        if sum(self.step_sizes) != length:
            raise ValueError(f"steps cover {sum(self.step_sizes)} slots, sequence has {length}")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First slot of every step, and the length as a last entry."""
        ends = torch.tensor((0, *self.step_sizes)).cumsum(0).tolist()
        return tuple(ends)

    def slots(self, step: int) -> slice:
        return slice(self.starts[step], self.starts[step + 1])

    def step_of(self, slot: int) -> int:
        """The step that fills `slot`; the number of steps for `slot == L`."""
        return next(
            (step for step in range(len(self.step_sizes)) if self.starts[step + 1] > slot),
            len(self.step_sizes),
        )


def raster_plan(batch: int, length: int) -> DecodePlan:
    """One slot per step, left to right and top to bottom."""
    return DecodePlan(torch.arange(length).expand(batch, -1), (1,) * length)
