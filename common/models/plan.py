"""How a sequence of visual tokens is split into decoding steps.

Shape letters: B sequences, L slots in a sequence, n slots in the current step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from common.config.quantities import Tokens
from common.config.schema import Config
from common.errors import InputError
from common.randomness import derive_seed
from common.spec import SequenceSpec

RANDOM_ORDER_STEPS = 64
"""ARPG's published number of steps for 256 tokens (docs/backbones.md, "ARPG decoding")."""


class ZipARConfig(Config):
    """Several rows of a raster at a time, each a window behind the one above (docs/method.md,
    "Parallel decoding")."""

    window: Tokens = 4
    """A row may emit column j once the row above holds j + window tokens; the grid's width or more
    is raster decoding."""
    row_start: Literal["prev_prev_last", "left_above", "zero"] = "prev_prev_last"
    """What a row's first token is predicted from while the end of the row above is undecoded: the
    newest token of the row before that (or, for the second row, of the first), the token right
    above, or a zero vector."""
    serial_first_row: bool = False
    """Finish the first row before the second one starts, as the public code does."""
    mask_undecoded: bool = True
    """Hide cells that are not decoded yet; false imitates the public code, where they take part in
    attention as zeros, and a stand-in stays in view until the true token arrives."""


@dataclass(frozen=True)
class DecodePlan:
    """The order in which positions are filled.

    Slot i of sequence b fills position order_BL[b, i]: a grid cell in raster order, or a place in
    the concatenated maps of a multi-scale sequence. Slots are grouped into steps; every slot of a
    step is predicted by the same forward pass. Raster, ZipAR, next-scale and random-order
    decoding differ in these two fields.
    """

    order_BL: Tensor
    step_sizes: tuple[int, ...]
    history_B: Tensor | None = field(default=None, kw_only=True)
    """How many steps before its own a step of each sequence sees, beside the first one; None: all.
    Only next-scale families can leave steps out."""

    def __post_init__(self) -> None:
        length = self.order_BL.shape[1]
        if sum(self.step_sizes) != length:
            raise ValueError(f"steps cover {sum(self.step_sizes)} slots, sequence has {length}")

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First slot of every step, and the length as a last entry."""
        ends = torch.tensor((0, *self.step_sizes)).cumsum(0).tolist()
        return tuple(ends)

    @cached_property
    def step_L(self) -> Tensor:
        """The step of every slot."""
        sizes = torch.tensor(self.step_sizes)
        return torch.arange(len(sizes)).repeat_interleave(sizes)

    @property
    def is_sequential(self) -> bool:
        """Whether every step decodes a single token."""
        return len(self.step_sizes) == self.order_BL.shape[1]

    def to_slots(self, cell_BL: Tensor) -> Tensor:
        """Values by grid position, in the order of the slots."""
        return cell_BL.gather(1, self.order_BL.to(cell_BL.device))

    def to_grid(self, value_BL: Tensor) -> Tensor:
        """Values of the slots, by grid position: the inverse of `to_slots`."""
        return torch.empty_like(value_BL).scatter_(1, self.order_BL.to(value_BL.device), value_BL)

    def slots_in(self, other: "DecodePlan") -> Tensor:
        """slot_BL: the slot of this plan that fills the position of every slot of `other`."""
        return other.to_slots(self.order_BL.argsort(1))

    def is_same(self, other: "DecodePlan") -> bool:
        """Whether it fills the same positions in the same steps."""
        steps = self.step_sizes == other.step_sizes
        return steps and torch.equal(self.order_BL, other.order_BL)

    def rows(self, chosen: Tensor | slice) -> "DecodePlan":
        """The plan of some sequences."""
        history_B = None if self.history_B is None else self.history_B[chosen]
        return replace(self, order_BL=self.order_BL[chosen], history_B=history_B)

    @classmethod
    def joined(cls, plans: "Sequence[DecodePlan]") -> "DecodePlan":
        """Of the sequences of all, which have the same steps."""
        order_BL, sizes = torch.cat([plan.order_BL for plan in plans]), plans[0].step_sizes
        if all(plan.history_B is None for plan in plans):
            return DecodePlan(order_BL, sizes)
        return DecodePlan(order_BL, sizes, history_B=torch.cat([p.history() for p in plans]))

    def history(self) -> Tensor:
        """`history_B` in numbers."""
        if self.history_B is not None:
            return self.history_B
        return torch.full((len(self.order_BL),), len(self.step_sizes))

    def slots(self, step: int) -> slice:
        return slice(self.starts[step], self.starts[step + 1])

    def step_of(self, slot: int) -> int:
        """The step that fills `slot`; the number of steps for `slot == L`."""
        return int(self.step_L[slot]) if slot < len(self.step_L) else len(self.step_sizes)


def raster_plan(batch: int, length: int) -> DecodePlan:
    """One slot per step, left to right and top to bottom."""
    return DecodePlan(torch.arange(length).expand(batch, -1), (1,) * length)


@dataclass(frozen=True)
class ZipARPlan(DecodePlan):
    """A plan whose slots come before their predecessor in the raster; for drawing, not scoring."""

    zipar: ZipARConfig
    """How a model makes up for what is missing."""
    cols: int


def zipar_plan(batch: int, grid: tuple[int, int], zipar: ZipARConfig, given: int = 0) -> DecodePlan:
    """All open rows advance by one token per step (docs/method.md, "Parallel decoding", arXiv
    2412.04062).

    The first `given` cells are steps of their own, to be skipped; the row in progress goes on and
    the next ones follow, as early as the window allows. Where that leaves one token per step (a
    window of the grid's width, or only one row to do), it is the raster plan.
    """
    rows, cols = grid
    row, held = divmod(given, cols)
    start, step_by_row = given, [torch.arange(given)]
    while row < rows:
        step_by_row.append(start + torch.arange(cols - held))
        lead = cols if zipar.serial_first_row and row == 0 else min(zipar.window, cols)
        start += max(lead - held, 0)
        row, held = row + 1, 0
    step_L = torch.cat(step_by_row)
    sizes = tuple(torch.bincount(step_L).tolist())
    if len(sizes) == len(step_L):
        return raster_plan(batch, len(step_L))
    return ZipARPlan(step_L.argsort(stable=True).expand(batch, -1), sizes, zipar, cols)


def next_scale_plan(batch: int, scales: Sequence[int]) -> DecodePlan:
    """One token map per step, coarse to fine (VAR)."""
    sizes = tuple(side * side for side in scales)
    return DecodePlan(torch.arange(sum(sizes)).expand(batch, -1), sizes)


def natural_plan(batch: int, spec: SequenceSpec) -> DecodePlan:
    """The tokenizer's own order: scale by scale, where there are several."""
    return next_scale_plan(batch, spec.scales) if spec.scales else raster_plan(batch, spec.length)


def random_order_plan(seeds: Sequence[int], step_sizes: tuple[int, ...]) -> DecodePlan:
    """A random order for every sequence, drawn from that sequence's own seed (ARPG).

    The official sampler shares one order in a batch; here a sequence does not depend on its
    company, as everywhere in this project.
    """
    length, generator = sum(step_sizes), torch.Generator()
    rows = [
        torch.randperm(length, generator=generator.manual_seed(derive_seed(seed, "order")))
        for seed in seeds
    ]
    return DecodePlan(torch.stack(rows), step_sizes)


def arpg_step_sizes(
    length: int, steps: int, schedule: Literal["arccos", "cosine"]
) -> tuple[int, ...]:
    """Tokens per step of ARPG's parallel decoding, in float64 as published (docs/backbones.md,
    "ARPG decoding").

    Raises:
        InputError: more steps than tokens (the official sampler fails there, too).
    """
    if steps > length:
        raise InputError(
            f"decoding.steps is {steps}, but a sequence has only {length} tokens; use at most that"
        )
    sizes: list[int] = []
    done = 0
    for step in range(steps - 1):
        ratio = (step + 1) / steps
        if schedule == "arccos":
            unknown = math.acos(ratio) / (math.pi * 0.5)
        else:
            unknown = math.cos(math.pi / 2 * ratio)
        remaining = max(1, min(length - done - 1, int(length * unknown)))
        sizes.append(length - done - remaining)
        done = length - remaining
    return (*sizes, length - done)
