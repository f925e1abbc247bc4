"""A batch in the order in which its sequences enter decoding.

Shape letters: B sequences, L slots, S steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.plan import DecodePlan

ENTRIES = 4
"""At most so many times do sequences with longer prefixes join the others; with more, few would
be read at a time, with less, more of what is given would be decoded to no end. On a CPU 4 took 3 to
12 % less than 8 of small students' time."""


def entries(drawing: DecodePlan, prefix_B: Tensor, may_join: bool) -> Tensor:
    """The step that each sequence enters with, on the CPU: the one that follows its prefix, rounded
    down to one of few; whole sequences never enter, at the number of steps. Who may not join enters
    with the first."""
    steps = len(drawing.step_sizes)
    entry_B = torch.tensor([drawing.step_of(prefix) for prefix in prefix_B.tolist()])
    first = int(entry_B.min())
    if not may_join:
        return torch.full_like(entry_B, first)
    apart = -(-steps // ENTRIES)
    return torch.where(entry_B < steps, first + (entry_B - first) // apart * apart, entry_B)


@dataclass(frozen=True, slots=True)
class Lineup:
    """A batch in the order of entry, its slots in the order of drawing."""

    label_B: Tensor
    plan: DecodePlan
    noise_BL: Tensor
    given_BL: Tensor
    is_given_BL: Tensor
    """On the CPU."""
    entry_B: Tensor
    """The step that each sequence enters with, ascending, on the CPU."""

    def steps(self) -> int:
        """How many there are to do."""
        return len(self.plan.step_sizes) - int(self.entry_B[0])

    def rows_a_step(self) -> int:
        """Tokens that a step decodes, on average over the plan and with all sequences in."""
        return -(-self.given_BL.numel() // len(self.plan.step_sizes))

    def rows(self) -> list[int]:
        """How many sequences take part in every step."""
        step_S = torch.arange(len(self.plan.step_sizes))
        return torch.searchsorted(self.entry_B, step_S, right=True).tolist()

    def has_given(self) -> list[bool]:
        """By slot, whether a sequence that takes part has its token already."""
        is_in_BL = self.entry_B[:, None] <= self.plan.step_L
        return (is_in_BL & self.is_given_BL).any(0).tolist()
