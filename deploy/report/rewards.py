"""What rewards of the student's samples looked like while it was trained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from learner.rewards import CONSTANT_GROUPS, GROUP_STD, LEFT_OUT, MEAN

LEAST_STEPS = 20


def reward_facts(rows: Sequence[Mapping[str, Any]], parts: Iterable[str]) -> dict[str, Any] | None:
    """Means, of the sum and of its parts, over the last tenth of the steps in which any was judged,
    twenty at least; in how many of all of these no group told its rows apart; and how many groups
    failed. None without rewards."""
    counted = [row[LEFT_OUT] for row in rows if LEFT_OUT in row]
    if not counted:
        return None
    judged = [row for row in rows if CONSTANT_GROUPS in row]
    last = judged[-max(LEAST_STEPS, len(judged) // 10) :]

    def mean(key: str) -> float | None:
        values = [row[key] for row in last if key in row]
        return sum(values) / len(values) if values else None

    return {
        "mean": mean(MEAN),
        "parts": {name: mean(f"reward/{name}") for name in parts},
        "group_std": mean(GROUP_STD),
        "steps": len(judged),
        "constant_steps": sum(row[CONSTANT_GROUPS] == 1 for row in judged),
        "groups_left_out": int(counted[-1]),
    }
