"""What rewards of the student's samples looked like while it was trained."""

from collections.abc import Mapping, Sequence
from typing import Any

from learner.rewards import CONSTANT_GROUPS, LEFT_OUT, OF_STEPS

LEAST_STEPS = 20


def reward_facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Means over the last tenth of the steps in which any was judged, twenty at least; in how many
    of all of these no group told its rows apart; and how many groups failed. None without rewards.
    """
    counted = [row[LEFT_OUT] for row in rows if LEFT_OUT in row]
    if not counted:
        return None
    judged = [row for row in rows if CONSTANT_GROUPS in row]
    last = judged[-max(LEAST_STEPS, len(judged) // 10) :]
    names = OF_STEPS[:2] if last else ()
    found = {name.partition("/")[2]: sum(row[name] for row in last) / len(last) for name in names}
    return found | {
        "steps": len(judged),
        "constant_steps": sum(row[CONSTANT_GROUPS] == 1 for row in judged),
        "groups_left_out": int(counted[-1]),
    }
