"""Says, long before a run is given up, that no step ends, and which stage it waits for."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from common.errors import Closed, RunFailed
from deploy.pipeline import Services

LEAST_SECONDS = 60.0
LONGEST_STEPS = 3
"""Times the longest step so far: evaluations and snapshots make some steps long."""


@dataclass
class StallWatch:
    """To be looked at a few times a second, once the first step is done."""

    least_seconds: float = LEAST_SECONDS
    clock: Callable[[], float] = time.monotonic
    _since: float | None = None
    _longest: float = 0.0
    _said: bool = False

    def look(self, steps: int, services: Services, say: Callable[[str], object]) -> None:
        """`steps` ended since the last call."""
        now = self.clock()
        if steps:
            if self._since is not None:
                self._longest = max(self._longest, now - self._since)
            if self._said:
                say("steps end again")
            self._since, self._said = now, False
        if self._since is None or self._said:
            return
        waited = now - self._since
        if waited > max(self.least_seconds, LONGEST_STEPS * self._longest):
            self._said = True
            with suppress(Closed, RunFailed):  # whoever ends the run says why
                say(f"warning: no step for {waited:.0f} s; {services.ledger.describe()}")
