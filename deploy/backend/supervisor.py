"""Keeps the rollout workers running; they come and go while the run goes on."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Protocol

from common.errors import UNDERSTOOD, InputError, RunFailed, ServiceDied, Verdict
from deploy.console.faults import GO_ON, FaultLog
from rollout.config import RolloutConfig

WORKED_SECONDS = 600.0
"""Who lived for so long died of something that happens now and then, such as a machine's end; who
did not may never get far."""
UNSAID_SECONDS = 10.0
"""A worker that is there sooner does not wait for room."""


class Runner(Protocol):
    """What the supervisor asks of a worker; both are called from threads of its own."""

    def run(self) -> int:
        """Work until told to stop, or until the run is over."""
        ...

    def stop(self) -> None:
        """Let `run` return after what was begun; may be called before it."""
        ...


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


class Places(Protocol):
    """Where the workers live: the part of a launcher that the supervisor talks to."""

    def end(self, placed: Any, /) -> object:
        """Free what a worker takes that is not needed, or not alive, any more."""
        ...

    def is_there(self, placed: Any, /) -> bool:
        """Whether one has found its room."""
        ...


class WorkerSupervisor:
    """Runs every worker in the background: `config.workers` of them from the start, others as they
    are added. To be used from one thread, which it never keeps waiting.

    A dead worker's leases go to the others, and up to `config.max_restarts` times a new worker
    takes its place; below `config.min_workers` the whole run is closed with the cause of the last
    death. A worker that says why it cannot go on closes the run at once: the next one would fail
    alike.
    """

    def __init__(
        self,
        services: Supervised,
        make_worker: Callable[[str], Runner],
        config: RolloutConfig,
        place: Places,
        tell: Callable[[str], object] = lambda sentence: None,
        faults: FaultLog | None = None,
    ) -> None:
        """`tell` hears who comes and goes."""
        self._services = services
        self._make = make_worker
        self._place = place
        self._tell = tell
        self._config = config
        self._faults = faults or FaultLog(None)
        # As many again for those that are told to stop.
        self._pool = ThreadPoolExecutor(2 * config.most_workers, thread_name_prefix="supervisor")
        self._workers: dict[str, Runner] = {}
        self._running: dict[str, Future[int]] = {}
        self._began: dict[str, float] = {}
        self._coming: dict[str, float | None] = {}
        self._retiring: set[str] = set()
        self._made = 0
        self._restarts = 0
        self.deaths: dict[str, str] = {}
        self.failure: Verdict | None = None
        for _ in range(config.workers):
            self.add()

    @property
    def workers(self) -> Mapping[str, Runner]:
        """Those that run, by name; one that retires is among them until its last lease is done."""
        return self._workers

    @property
    def alive(self) -> int:
        """Workers that run, or wait for their room, and are to go on."""
        return len(self._running.keys() - self._retiring)

    @property
    def pending(self) -> list[str]:
        """Those among them that are not there yet."""
        return [name for name in self._coming if name not in self._retiring]

    @property
    def retiring(self) -> list[str]:
        return sorted(self._retiring & self._running.keys())

    def add(self) -> str:
        """Make one more worker and let it run; its name. On a cluster that is full it waits.

        Raises:
            ValueError: the services have no threads for another one.
        """
        if self.alive >= self._config.most_workers:
            raise ValueError(f"{self.alive} workers run, and no more may")
        name = f"worker-{self._made}"
        self._made += 1
        worker = self._workers[name] = self._make(name)
        self._coming[name] = self._began[name] = time.monotonic()
        self._running[name] = self._pool.submit(worker.run)
        return name

    def retire(self, name: str) -> None:
        """Let a worker finish what it has begun and end; what it could not hand over, the others
        get. Returns at once: it is gone from `workers` when that is done.

        Raises:
            ValueError: no such worker is to go on, or too few would be left.
        """
        if name in self._retiring or name not in self._running:
            raise ValueError(f"no worker {name} runs that could retire")
        if self.alive <= self._config.min_workers:
            raise ValueError(f"without {name} there are fewer than rollout.min_workers")
        self._greet()
        self._retiring.add(name)
        if name in self._coming:
            self._place.end(self._workers[name])  # it would hear of it when it has found its room
        else:
            self._pool.submit(self._workers[name].stop)

    def scale(self, count: int) -> list[str]:
        """Add or retire workers until `count` are to go on; their names. Whoever waits for room
        goes first, then the youngest.

        Raises:
            InputError: `count` lies outside of what the run was begun with.
        """
        least, most = self._config.min_workers, self._config.most_workers
        if not least <= count <= most:
            field = (
                "2 * rollout.workers" if self._config.max_workers is None else "rollout.max_workers"
            )
            raise InputError(
                f"rollout={count}, but this run has {least} (rollout.min_workers) to {most} "
                f"({field}) workers; choose a number between them, or begin it again with others"
            )
        changed = [self.add() for _ in range(count - self.alive)]
        there = [name for name in self._running if name not in {*self._retiring, *self._coming}]
        leaving = [*self.pending[::-1], *there[::-1]][: max(0, self.alive - count)]
        for name in leaving:
            self.retire(name)
        return changed + leaving

    def check(self) -> None:
        """Handle workers that ended; cheap, to be called a few times per second."""
        for name in [name for name, future in self._running.items() if future.done()]:
            error = self._running.pop(name).exception()
            worker, was_coming = self._workers.pop(name), name in self._coming
            self._coming.pop(name, None)
            if self.failure is not None:
                continue  # the ledger is closed
            if name in self._retiring and was_coming:
                self._services.ledger.expire(name)
            elif isinstance(error, UNDERSTOOD) and not isinstance(error, ServiceDied):
                self._fail(Verdict.of(error))
            elif error is not None:
                self._place.end(worker)
                self._bury(name, error)
            elif name in self._retiring:
                self._services.ledger.expire(name)
                self._place.end(worker)
                self._tell(f"{name} has retired")
        self._greet()

    def _greet(self) -> None:
        """Who waited for room is there, or waits for long."""
        for name in self.pending:
            since = self._coming[name]
            if self._place.is_there(self._workers[name]):
                del self._coming[name]
                if since is None:
                    self._tell(f"{name} has found its room")
            elif since is not None and time.monotonic() - since > UNSAID_SECONDS:
                self._coming[name] = None
                self._tell(f"{name} waits for room on the cluster; the run goes on meanwhile")

    def _bury(self, name: str, error: BaseException) -> None:
        self.deaths[name] = self._faults.sentence(name, error)
        lost = self._services.ledger.expire(name)
        self._replace(name)
        if self.alive < self._config.min_workers:
            sentence = (
                f"{self.alive} rollout workers are left (rollout.min_workers is "
                f"{self._config.min_workers}); {name} had {len(lost)} open leases: "
                f"{self.deaths[name]}"
            )
            self._fail(Verdict.of(RunFailed(sentence)))

    def _replace(self, name: str) -> None:
        """Let another worker take a dead one's place, if it was to go on and that is left."""
        if name in self._retiring:
            return
        said = self.deaths[name].removesuffix(f"; {GO_ON}")
        is_early = time.monotonic() - self._began[name] < WORKED_SECONDS
        if is_early and self._restarts >= self._config.max_restarts:
            self._tell(f"{said}; nobody takes its place (rollout.max_restarts)")
            return
        self._restarts += is_early
        self._tell(f"{said}; {self.add()} takes its place")

    def _fail(self, failure: Verdict) -> None:
        self.failure = failure
        self._services.close(failure)

    def dismiss(self, seconds: float = 10.0) -> None:
        """Tell everybody to stop and wait up to `seconds` for their last record."""
        self._services.close("the run is over")
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            with suppress(ServiceDied):  # the ledger: there is nobody to give leases back to
                self.check()
            time.sleep(0.02)
        self._pool.shutdown(wait=False, cancel_futures=True)
