"""Keeps the rollout workers and the replicas of the scorers running; they come and go while the run
goes on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from common.errors import UNDERSTOOD, Closed, RunFailed, ServiceDied, Verdict
from deploy.backend.crew import Crew, Ended, Places
from deploy.backend.role import Role, Runner
from deploy.console.faults import GO_ON, FaultLog

WORKED_SECONDS = 600.0
"""Who lived for so long died of something that happens now and then, such as a machine's end; who
did not may never get far."""


class Leases(Protocol):
    """The part of the ledger that the supervisor talks to."""

    def expire(self, worker: str) -> list[int]:
        """Give a dead worker's open leases to the others; their numbers."""
        ...


class Supervised(Protocol):
    """The services that the workers talk to."""

    @property
    def ledger(self) -> Leases: ...
    def close(self, cause: str | Verdict) -> None: ...


class Supervisor:
    """One crew for every role. To be used from one thread, which it never keeps waiting.

    Another one takes the place of who died, up to `max_restarts` times a role; a dead worker's
    leases go to the others, and who sends to a scorer hears which replicas are there. With fewer
    than the least that a role may have, the whole run is closed with the cause of the last death.
    Who says why it cannot go on closes the run at once: the next one would fail alike.
    """

    def __init__(
        self,
        services: Supervised,
        roles: Mapping[str, Role[Runner]],
        place: Places,
        tell: Callable[[str], object] = lambda sentence: None,
        faults: FaultLog | None = None,
    ) -> None:
        """`roles` by the name by which their number is asked for; `tell` hears who comes and
        goes."""
        self._services = services
        self._place = place
        self._tell = tell
        self._faults = faults or FaultLog(None)
        # As many again for those that are told to stop.
        threads = sum(2 * role.limits.most for role in roles.values())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="supervisor")
        self.crews = {
            name: Crew(name, role, place, self._pool, tell) for name, role in roles.items()
        }
        self._known = {name: list(role.first) for name, role in roles.items()}
        self._restarts = dict.fromkeys(roles, 0)
        self.deaths: dict[str, str] = {}
        self.replaced: dict[str, dict[str, Any]] = {}
        """Of those who died, by name: who is in their place, and how many `seconds` after the death
        was noticed that one was there."""
        self._awaited: dict[str, tuple[str, float]] = {}
        self.known_causes: dict[str, str] = {}
        """Sentences about who is gone, by somebody who knows more than that (Heartbeat)."""
        self.failure: Verdict | None = None
        self._is_over = False

    @property
    def pending(self) -> list[str]:
        """Those of all crews that are not there yet."""
        return [name for crew in self.crews.values() for name in crew.pending]

    @property
    def counts(self) -> dict[str, int]:
        """How many of each role are there."""
        return {name: crew.alive - len(crew.pending) for name, crew in self.crews.items()}

    def facts(self, others: Mapping[str, str]) -> dict[str, Any]:
        """For distill.json; `others` died whom nobody here keeps running, with their causes."""
        return {"deaths": self.deaths | dict(others), "replaced": self.replaced}

    def scale(self, role: str, count: int) -> list[str]:
        """As `Crew.scale` of that role."""
        changed = self.crews[role].scale(count)
        self._announce(self.crews[role])
        return changed

    def check(self) -> None:
        """Handle who ended; cheap, to be called a few times per second."""
        for crew in self.crews.values():
            for end in crew.ended():
                if not self._is_over:
                    self._settle(crew, end)
            crew.greet()
            self._note_arrivals(crew)
            self._announce(crew)

    def _settle(self, crew: Crew, end: Ended) -> None:
        if end.was_retiring and end.was_coming:
            self._expire(crew, end.name)
        elif isinstance(end.error, UNDERSTOOD) and not isinstance(end.error, ServiceDied):
            self._fail(Verdict.of(end.error))
        elif end.error is not None:
            self._place.end(end.member)
            self._bury(crew, end, end.error)
        elif end.was_retiring:
            self._expire(crew, end.name)
            self._place.end(end.member)
            self._tell(f"{end.name} has retired")

    def _expire(self, crew: Crew, name: str) -> list[int]:
        return [] if crew.role.is_asked else self._services.ledger.expire(name)

    def _bury(self, crew: Crew, end: Ended, error: BaseException) -> None:
        found = self._faults.sentence(end.name, error)
        self.deaths[end.name] = self.known_causes.get(end.name, found)
        leases, limits = self._expire(crew, end.name), crew.limits
        self._replace(crew, end)
        if crew.alive >= limits.least:
            return
        had = "" if crew.role.is_asked else f"; {end.name} had {len(leases)} open leases"
        field = f" ({limits.least_field} is {limits.least})" if limits.least_field else ""
        sentence = f"{crew.alive} {limits.noun} are left{field}{had}: {self.deaths[end.name]}"
        self._fail(Verdict.of(RunFailed(sentence)))

    def _replace(self, crew: Crew, end: Ended) -> None:
        """Let another one take a dead one's place, if it was to go on and that is left."""
        if end.was_retiring:
            return
        said = self.deaths[end.name].removesuffix(f"; {GO_ON}")
        is_early = end.lived < WORKED_SECONDS
        if is_early and self._restarts[crew.name] >= crew.limits.max_restarts:
            field = f"{crew.limits.section}.max_restarts"
            self._tell(f"{said}; nobody takes its place ({field})")
            return
        self._restarts[crew.name] += is_early
        self._awaited[name := crew.add()] = end.name, time.monotonic()
        self._tell(f"{said}; {name} takes its place")

    def _note_arrivals(self, crew: Crew) -> None:
        for name in self._awaited.keys() & crew.there.keys():
            dead, since = self._awaited.pop(name)
            self.replaced[dead] = {"by": name, "seconds": time.monotonic() - since}

    def _announce(self, crew: Crew) -> None:
        """Tell who sends to them which of a crew are there, if that has changed."""
        there = crew.there
        if not self._is_over and crew.role.is_asked and [*there] != self._known[crew.name]:
            self._known[crew.name] = [*there]
            self._place.announce(crew.name, [*there.values()], to=self._everybody())

    def _everybody(self) -> list[Any]:
        return [member for crew in self.crews.values() for member in crew.members.values()]

    def _fail(self, failure: Verdict) -> None:
        self.failure, self._is_over = failure, True
        self._services.close(failure)
        self._close_ways(failure)

    def _close_ways(self, cause: Verdict) -> None:
        """Nobody is to wait for a scorer any more."""
        for name, crew in self.crews.items():
            if crew.role.is_asked:
                self._place.announce(name, cause, to=self._everybody())

    def dismiss(self, seconds: float = 10.0) -> None:
        """Tell everybody to stop and wait up to `seconds` for the workers' last record; what is
        left ends with its process."""
        self._services.close("the run is over")
        self._is_over = True
        self._close_ways(self.failure or Verdict(Closed, "the run is over"))
        working = [crew for crew in self.crews.values() if not crew.role.is_asked]
        deadline = time.monotonic() + seconds
        while any(crew.members for crew in working) and time.monotonic() < deadline:
            with suppress(ServiceDied):
                self.check()
            time.sleep(0.02)
        self._pool.shutdown(wait=False, cancel_futures=True)
