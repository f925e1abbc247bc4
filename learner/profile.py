"""Curves by slot over windows of steps: the sums of every step's tally, added up on the device.

A step's tally is of all ranks already, so every rank holds the same window and closes it without
another message. An open window is part of every snapshot: a run that is stopped and resumed counts
every step once. A learner that died repeats the steps after its snapshot, and the windows that
ended there; whoever reads them takes the last one of a number.

Shape letters: Q quantities, X contexts, L slots.
"""

from typing import Any

import torch
from torch import Tensor

from learner.diagnostics import StepStatistics

DIGITS = 6


class Profile:
    """Windows of `every` steps, counted from step 1; the last one ends with step `last`."""

    def __init__(self, every: int, last: int) -> None:
        self._every = every
        self._last = last
        self._steps = 0
        self._first = 0
        self._sum_2QXL: Tensor | None = None
        self._curves: list[str] = []

    def add(self, statistics: StepStatistics, step: int) -> None:
        """Count one finished step (the first is 1), after the tally was summed over ranks."""
        if not self._every:
            return
        if self._sum_2QXL is None:
            self._first = step
            self._sum_2QXL = torch.zeros_like(statistics.sum_2QXL)
        self._sum_2QXL += statistics.sum_2QXL
        self._steps = step
        self._curves = [f"{name}/{context}" for name, context in statistics.keys]

    def ends_with(self, step: int) -> bool:
        """Whether a window does."""
        return bool(self._every) and (step % self._every == 0 or step == self._last)

    def take(self) -> dict[str, Any] | None:
        """The window that ended with the last step, as JSON; None inside of one.

        {"first": step, "last": step, "curves": {"name/context": {"mean": [..], "count": [..]}}};
        means are None where nothing was counted, and curves without any count are left out.
        """
        if self._sum_2QXL is None or not self.ends_with(self._steps):
            return None
        total_QL, count_QL = self._sum_2QXL.cpu().flatten(1, 2)
        self._sum_2QXL = None
        curves = {
            name: {"mean": _means(total_L, count_L), "count": count_L.long().tolist()}
            for name, total_L, count_L in zip(self._curves, total_QL, count_QL, strict=True)
            if count_L.any()
        }
        return {"first": self._first, "last": self._steps, "curves": curves}

    def state(self) -> dict[str, Any]:
        """The open window, for a snapshot."""
        return {"first": self._first, "sum_2QXL": self._sum_2QXL}

    def restore(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on with the window of a snapshot."""
        self._first, found = state["first"], state["sum_2QXL"]
        self._sum_2QXL = None if found is None else found.to(device)


def _means(total_L: Tensor, count_L: Tensor) -> list[float | None]:
    pairs = zip(total_L.tolist(), count_L.tolist(), strict=True)
    return [float(f"{total / count:.{DIGITS}g}") if count else None for total, count in pairs]
