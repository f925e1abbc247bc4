"""What to sample next: a pure function of (seed, index), plus leases, credits and the frontier.

Image index i of a run always means the same dataset row, context, prefix, label and noise,
whoever samples it and whenever. Indices are handed out in leases of `lease_size`; a lease is
open, leased, stored or trained, and every lease is trained exactly once. One that the learner waits
for and that is late goes to an idle worker as well: what it has to sample is the same.
"""

import heapq
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from threading import Condition
from typing import Any

from common.errors import Verdict
from common.exchange.frontier import NOTHING, Frontier
from common.exchange.holdings import Holdings
from common.exchange.schedule import Lease, Schedule
from common.exchange.stall import stalled_stage


class Ledger:
    """Thread-safe. Outstanding leases never exceed `ahead + 1` steps' worth of images.

    Nothing is leased before the learner called `restore` for the first time.
    """

    def __init__(self, schedule: Schedule, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells for how long somebody has a lease, in seconds."""
        self._schedule = schedule
        self._changed = Condition()
        self._generation = 0
        self._cause: Verdict | None = None
        self._open = False
        self._dead: set[str] = set()
        self._leased = Holdings(clock)
        self._reset(NOTHING, ())
        self._reissued = 0
        self._restarts: list[dict[str, float]] = []
        self._committed = 0.0  # when

    def _reset(self, state: dict[str, Any], versions: Iterable[int]) -> None:
        self._trained = Frontier(state)
        self._base = self._trained.step
        self._versions = sorted(versions)
        self._next = 0
        self._again: list[int] = []
        self._leased.clear()
        self._stored: set[int] = set()

    def lease(self, worker: str, timeout: float) -> Lease | None:
        """The next block for `worker`, or one that another is late with; None when no credit came
        free within `timeout` seconds.

        Raises:
            Closed: the run is over; the message says why.
        """
        deadline = self._leased.clock() + timeout
        with self._changed:
            while (number := self._next_for(worker)) is None:
                now, next_late = self._leased.clock(), self._next_late(worker)
                if now >= deadline or worker in self._dead:
                    return None
                until = deadline if next_late is None else min(deadline, next_late[0])
                self._changed.wait(until - now)
            late = self._leased.give(number, worker)
            return self._describe(number, late)

    def wants(self, number: int, generation: int) -> bool:
        """Whether that lease is still somebody's, and of this generation."""
        with self._changed:
            return generation == self._generation and number in self._leased

    def stored(self, number: int, generation: int) -> bool:
        """The buffer holds the record; False (and nothing changes) if it is not wanted."""
        with self._changed:
            wanted = generation == self._generation and number in self._leased
            if wanted:
                self._leased.settle(number)
                self._stored.add(number)
            return wanted

    def reopen(self, numbers: Iterable[int], generation: int) -> None:
        """Records dropped as stale: sample them again with newer weights. Those of a generation
        before the learner restarted are sampled again anyway."""
        with self._changed:
            if generation != self._generation:
                return
            for number in numbers:
                self._stored.discard(number)
                heapq.heappush(self._again, number)
            self._changed.notify_all()

    def expire(self, worker: str) -> list[int]:
        """`worker` is dead: hand its unfinished leases to others under the same numbers, and give
        none to a call of its that still waits. No worker takes its name again."""
        with self._changed:
            self._dead.add(worker)
            lost = self._leased.leave(worker)
            for number in lost:
                heapq.heappush(self._again, number)
            self._reissued += len(lost)
            self._changed.notify_all()
            return lost

    def commit(self, step: int, numbers: Collection[int]) -> None:
        """`numbers` were trained and `step` steps are done; their credits come back."""
        with self._changed:
            for number in numbers:
                self._stored.discard(number)
            self._trained.add(step, numbers)
            self._committed = time.monotonic()
            if self._restarts and "seconds" not in self._restarts[-1]:
                self._restarts[-1]["seconds"] = self._committed - self._restarts[-1].pop("since")
            self._changed.notify_all()

    def close(self, cause: str | Verdict) -> None:
        """End the run: every waiting and later `lease` raises `Closed`, or what the verdict
        says; the first cause stands."""
        with self._changed:
            self._cause = self._cause or Verdict.of(cause)
            self._changed.notify_all()

    def ending(self) -> Verdict | None:
        """Why the run was closed, if it was."""
        with self._changed:
            return self._cause

    def state(self) -> dict[str, Any]:
        """As `Frontier.state`."""
        with self._changed:
            return self._trained.state()

    def restore(self, state: dict[str, Any], versions: Iterable[int] = ()) -> int:
        """Go back to `state`; returns the new generation that later records must carry. Beside
        the state's own version of the student, `versions` of before are published again."""
        with self._changed:
            self._generation += 1
            if self._open:
                reached = {"reached": self._trained.step, "from": state["step"]}
                self._restarts.append({**reached, "since": self._committed or time.monotonic()})
            self._open = True
            self._reset(state, versions)
            self._changed.notify_all()
            return self._generation

    def restarts(self) -> list[dict[str, float]]:
        """Of the learner: the step that it had `reached`, the one that it began again `from`, and
        the `seconds` from its last step before to its first one after, if there was one."""
        with self._changed:
            return [
                {name: value for name, value in restart.items() if name != "since"}
                for restart in self._restarts
            ]

    def gauges(self) -> dict[str, float]:
        with self._changed:
            return {
                "ledger/leased": len(self._leased),
                "ledger/stored": len(self._stored),
                "ledger/reissued": self._reissued,
                "ledger/taken_over": self._leased.taken_over,
            }

    def describe(self) -> str:
        """Which stage the run waits for, and who holds what: for the watchdog."""
        with self._changed:
            ages, scored = self._leased.ages(), len(self._stored)
            leased = {number: next(iter(holders.items())) for number, holders in ages.items()}
            per_step = self._schedule.leases_per_step
            stage = stalled_stage(leased, scored, per_step, is_free=self._can_lease())
            held = [
                f"{worker} has lease {number} for {age:.0f} s"
                for number, holders in ages.items()
                for worker, age in holders.items()
            ]
            waiting = f"{scored} leases scored, {self._trained.step} steps trained"
            return "; ".join([f"it waits for {stage}", *held, waiting])

    def _next_for(self, worker: str) -> int | None:
        """The lease that it may have now.

        Raises:
            Closed: the run is over.
        """
        if self._cause is not None:
            raise self._cause.error()
        if worker in self._dead:  # a call outlives its process: nobody would sample what it got
            return None
        if self._can_lease():
            return heapq.heappop(self._again) if self._again else self._fresh()
        late = self._next_late(worker)
        return late[1] if late is not None and late[0] <= self._leased.clock() else None

    def _next_late(self, worker: str) -> tuple[float, int] | None:
        return self._leased.next_late(self._waited_for(), worker)

    def _waited_for(self) -> Iterator[int]:
        """Leases that somebody has and that the learner needs before it can go on."""
        if self._schedule.by_step:
            step, per_step = self._trained.step, self._schedule.leases_per_step
            return (number for number in self._leased if number // per_step == step)
        return iter(self._leased if len(self._stored) < self._schedule.leases_per_step else ())

    def _fresh(self) -> int:
        number = self._trained.next_open(self._next)
        self._next = number + 1
        return number

    def _can_lease(self) -> bool:
        if not self._open:
            return False
        per_step = self._schedule.leases_per_step
        ahead = self._schedule.ahead_of(self._trained.step)
        if self._schedule.by_step:
            number = self._again[0] if self._again else self._trained.next_open(self._next)
            within = number // per_step <= self._trained.step + ahead
            return within and number < self._schedule.total
        outstanding = len(self._leased) + len(self._stored)
        if outstanding >= (ahead + 1) * per_step:
            return False
        return bool(self._again) or self._trained.next_open(self._next) < self._schedule.total

    def _describe(self, number: int, late: str | None) -> Lease:
        size = self._schedule.lease_size
        step = number // self._schedule.leases_per_step
        version = self._pinned(step) if self._schedule.ordered else None
        return Lease(number, number * size, size, step, version, self._generation, late=late)

    def _pinned(self, step: int) -> int:
        pinned = self._schedule.pinned_version(step)
        if pinned >= self._base:
            return pinned
        # Of before a restart: where that very version is gone, the one after it.
        return next((version for version in self._versions if version >= pinned), self._base)
