"""Whether a run is to have one more actor of a role, or one less: numbers in, a decision out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from common.exchange.schedule import Schedule
from deploy.backend.role import ROLLOUT, Limits
from deploy.load import Load, LoadMeter

WAITS = 0.2
"""Share of its time that the learner waits, from which on a worker more is worth its place."""
HARDLY_WAITS = 0.05
BUSY = 0.8
"""Who is idle for more than this has room for more; for workers, of the time that the learner
waits, for on policy they have nothing to do while it works."""
SCORER_BUSY = 0.9
"""From there on more samples only wait for the scorer."""
WINDOW_SECONDS = 10.0
WINDOW_STEPS = 3
WINDOWS = 3
"""That must agree, one after the other: one slow step is no reason."""


@dataclass(frozen=True, slots=True)
class Decision:
    role: str
    change: int
    """1, 0 or -1 actors of it."""
    reason: str = ""


NOTHING = Decision(ROLLOUT, 0)


class Scaler:
    """Looks at windows of steps, and says something after some that agree.

    While the learner waits, a replica is added of a scorer that is busy all the time; if none is,
    a worker, as long as workers are busy too. One retires while the learner hardly waits and those
    that are left would not be busy all the time either. After a change, or while somebody is on the
    way, it begins to look anew. Between the two lies a range in which nothing happens, so that it
    does not go to and fro.
    """

    def __init__(
        self,
        limits: Mapping[str, Limits],
        schedule: Schedule,
        world_size: int,
        *,
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        """`limits` by role."""
        self._limits = limits
        self._useful = schedule.most_outstanding // schedule.lease_size
        """More than leases that may be out find nothing to do."""
        self._window_seconds = window_seconds
        self._meter = LoadMeter(world_size)
        self._counts: dict[str, int] = {}
        self._wish = NOTHING
        self._agreed = 0

    def hear(self, row: Mapping[str, Any], counts: Mapping[str, int]) -> None:
        """A step's row of metrics, and how many of each role were there."""
        if counts != self._counts:
            self._counts = dict(counts)
            self._begin_anew()
        self._meter.add(row, counts[ROLLOUT])

    def decide(
        self, alive: Mapping[str, int], *, is_coming: bool, fixed: Collection[str] = ()
    ) -> Decision:
        """For so many `alive` of each role, of whom some may not be there yet; the number of
        `fixed` roles is somebody's choice."""
        free = {
            role for role, limits in self._limits.items() if limits.is_elastic and role not in fixed
        }
        if not free:
            return NOTHING
        if is_coming:
            self._begin_anew()
        if self._meter.seconds < self._window_seconds or self._meter.steps < WINDOW_STEPS:
            return NOTHING
        load = self._meter.load()
        assert load is not None
        self._meter.clear()
        wish = self._wish_of(load, alive, free)
        self._agreed = self._agreed + 1 if wish == self._wish else 1
        self._wish = wish
        if not wish.change or self._agreed < WINDOWS:
            return NOTHING
        self._begin_anew()
        return Decision(wish.role, wish.change, _reason(load, wish.role))

    def _wish_of(self, load: Load, alive: Mapping[str, int], free: Collection[str]) -> Decision:
        waits = 1 - load.learner
        if waits >= WAITS:
            full = [name for name, busy in load.scorers.items() if busy >= SCORER_BUSY]
            if not full and load.rollout >= BUSY * waits:
                full = [ROLLOUT]
            more = (role for role in full if role in free and self._may_grow(role, alive[role]))
            return next((Decision(role, 1) for role in more), NOTHING)
        if waits > HARDLY_WAITS:
            return NOTHING
        for role, busy in ((ROLLOUT, load.rollout), *load.scorers.items()):
            if role in free and self._may_shrink(role, alive[role], busy):
                return Decision(role, -1)
        return NOTHING

    def _may_grow(self, role: str, alive: int) -> bool:
        return alive < min(self._limits[role].most, self._useful)

    def _may_shrink(self, role: str, alive: int, busy: float) -> bool:
        return alive > max(1, self._limits[role].floor) and busy * alive / (alive - 1) < BUSY

    def _begin_anew(self) -> None:
        self._meter.clear()
        self._wish, self._agreed = NOTHING, 0


def _reason(load: Load, role: str) -> str:
    who, busy = ("workers are", load.rollout)
    if role != ROLLOUT:
        who, busy = f"{role} replicas are", load.scorers[role]
    return f"the learner waits {1 - load.learner:.0%} of the time, {who} {busy:.0%} busy"
