"""Notices rewards that fail, and one that tells no sample of a condition from another."""

from collections.abc import Iterator, Mapping
from typing import Any

from learner.rewards import CONSTANT_GROUPS, LEFT_OUT

STEPS = 10
"""On end; groups that happen to be alike for less are chance."""


class RewardWatch:
    """Hears every row of metrics."""

    def __init__(self, weights: Mapping[str, float], group_size: int) -> None:
        """Of the parts of the reward, and how many samples a condition has."""
        self._parts = ", ".join(f"{name}={weight:g}" for name, weight in weights.items())
        self._group_size = group_size
        self._steps = 0
        """Judged ones on end in which every group was constant."""
        self._knows_failures = False

    def hear(self, row: Mapping[str, Any]) -> Iterator[str]:
        """A sentence when the first groups were left out; and one when all were constant for long,
        once as long as that lasts. A step in which nothing was judged says nothing about it."""
        if row.get(LEFT_OUT, 0) and not self._knows_failures:
            self._knows_failures = True
            yield (
                f"warning: {row[LEFT_OUT]:.0f} groups were left out, because a reward failed for "
                f"some of their rows (objective.rewards: {self._parts}); the run goes on without "
                "them and counts them (reward/groups_left_out, and the report)"
            )
        if CONSTANT_GROUPS not in row:
            return
        self._steps = self._steps + 1 if row[CONSTANT_GROUPS] == 1 else 0
        if self._steps == STEPS:
            yield (
                f"warning: in {STEPS} steps on end all {self._group_size} rows of every group had "
                f"the same reward (objective.rewards: {self._parts}), so nothing is learned from "
                "it; choose a reward that tells samples of one condition apart, or, if these are "
                "all alike by now, begin again with a larger objective.beta; the run goes on"
            )
