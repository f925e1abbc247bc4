"""Whether a run is to have another rollout worker, or one less: numbers in, a decision out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from common.exchange.schedule import Schedule
from deploy.load import Load, LoadMeter
from rollout.config import RolloutConfig

WAITS = 0.2
"""Share of its time that the learner waits, from which on a worker more is worth its place."""
HARDLY_WAITS = 0.05
WORKERS_BUSY = 0.8
"""Who is idle for more than this has room for more; of the time that the learner waits, for on
policy they have nothing to do while it works."""
TEACHER_BUSY = 0.9
"""From there on more samples only wait for the teacher."""
WINDOW_SECONDS = 10.0
WINDOW_STEPS = 3
WINDOWS = 3
"""That must agree, one after the other: one slow step is no reason."""


@dataclass(frozen=True, slots=True)
class Decision:
    change: int
    """1, 0 or -1 workers."""
    reason: str = ""


NOTHING = Decision(0)


class Scaler:
    """Looks at windows of steps, and says something after some that agree.

    A worker is added while the learner waits for workers that are busy, and the teacher is not; one
    retires while the learner hardly waits and those that are left would not be busy all the time
    either. After a change, or while a worker is on its way, it begins to look anew. Between the two
    lies a range in which nothing happens, so that it does not go to and fro.
    """

    def __init__(
        self,
        config: RolloutConfig,
        schedule: Schedule,
        world_size: int,
        *,
        window_seconds: float = WINDOW_SECONDS,
    ) -> None:
        self._least, self._most = config.min_workers, config.most_workers
        # More workers than leases that may be out find nothing to sample.
        self._most = min(self._most, schedule.most_outstanding // schedule.lease_size)
        self._is_elastic = config.is_elastic
        self._window_seconds = window_seconds
        self._meter = LoadMeter(world_size)
        self._workers = 0
        self._wish = 0
        self._agreed = 0

    def hear(self, row: Mapping[str, Any], workers: int) -> None:
        """A step's row of metrics, and how many workers were there to sample."""
        if workers != self._workers:
            self._workers = workers
            self._begin_anew()
        self._meter.add(row, workers)

    def decide(self, alive: int, pending: int) -> Decision:
        """For `alive` workers, of whom `pending` are not there yet."""
        if not self._is_elastic:
            return NOTHING
        if pending:
            self._begin_anew()
        if self._meter.seconds < self._window_seconds or self._meter.steps < WINDOW_STEPS:
            return NOTHING
        load = self._meter.load()
        assert load is not None
        self._meter.clear()
        wish = self._wish_of(load, alive)
        self._agreed = self._agreed + 1 if wish == self._wish else 1
        self._wish = wish
        if not wish or self._agreed < WINDOWS:
            return NOTHING
        self._begin_anew()
        return Decision(wish, _reason(load))

    def _wish_of(self, load: Load, alive: int) -> int:
        waits = 1 - load.learner
        is_teacher_free = load.teacher is None or load.teacher < TEACHER_BUSY
        if waits >= WAITS and load.rollout >= WORKERS_BUSY * waits and is_teacher_free:
            return int(alive < self._most)
        if waits > HARDLY_WAITS or alive <= self._least or alive < 2:
            return 0
        return -int(load.rollout * alive / (alive - 1) < WORKERS_BUSY)

    def _begin_anew(self) -> None:
        self._meter.clear()
        self._wish = self._agreed = 0


def _reason(load: Load) -> str:
    return (
        f"the learner waits {1 - load.learner:.0%} of the time, workers are {load.rollout:.0%} busy"
    )
