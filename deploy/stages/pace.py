"""Names a worker that samples far slower than the others: its machine is shared, or throttled."""

from collections import deque
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from common.exchange.holdings import LEAST_SECONDS

KEY = "lease_seconds/"
"""Of a row of metrics, with a worker's name: seconds that its leases of the step took."""
LATE = "late_leases/"
"""With a worker's name: how many of its leases all waited for, until another one sampled them."""
LATE_LEASES, LATE_STEPS = 3, 20
"""Once or twice in so many steps is chance."""
LEASES = 8
"""Of which the median counts."""
SLOW = 4.0
"""Times the median of the others."""
STEP_SHARE = 0.1
"""Of a step: who takes less for a lease holds nobody up, however quick the others are."""


class WorkerPace:
    """Hears every row of metrics."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = {}
        self._steps: deque[float] = deque(maxlen=LEASES)
        self.slow: dict[str, float] = {}
        """How many times as long as the others' the leases of a worker took, when that was seen."""
        self._rows = 0
        self._late: dict[str, deque[int]] = {}
        """In which of the rows a worker was late, the last times; no more once that was said."""

    def hear(self, row: Mapping[str, Any]) -> Iterator[str]:
        """A sentence about each that is found to be slow, or late again and again, once."""
        self._rows += 1
        if "seconds/wait" in row:
            self._steps.append(float(row["seconds/wait"]) + float(row["seconds/step"]))
        for key, seconds in row.items():
            if key.startswith(KEY):
                name = key.removeprefix(KEY)
                self._seconds.setdefault(name, deque(maxlen=LEASES)).append(float(seconds))
                if name not in self.slow and (said := self._judged(name)):
                    yield said
            elif key.startswith(LATE) and self._is_often_late(name := key.removeprefix(LATE)):
                yield (
                    f"warning: {name} was late with {LATE_LEASES} leases in {LATE_STEPS} steps: "
                    "look at its machine; the run goes on, and others sampled them as well"
                )

    def _is_often_late(self, name: str) -> bool:
        """Once a worker."""
        at = self._late.setdefault(name, deque(maxlen=LATE_LEASES))
        if not at.maxlen:
            return False
        at.append(self._rows)
        is_often = len(at) == LATE_LEASES and self._rows - at[0] < LATE_STEPS
        if is_often:
            self._late[name] = deque(maxlen=0)
        return is_often

    def _judged(self, name: str) -> str | None:
        known = {
            worker: median(seconds)
            for worker, seconds in self._seconds.items()
            if len(seconds) == LEASES
        }
        others = [seconds for worker, seconds in known.items() if worker != name]
        if name not in known or not others or known[name] < SLOW * median(others):
            return None
        if known[name] < max(LEAST_SECONDS, STEP_SHARE * median(self._steps or [0.0])):
            return None
        usual = median(others)
        self.slow[name] = round(known[name] / usual, 1)
        return (
            f"warning: {name} takes {known[name]:.3g} s for a lease, {self.slow[name]:g} times as "
            "long as the others: look at its machine; the run goes on, and others sample as well "
            "what all wait for"
        )
