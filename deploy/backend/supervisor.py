"""Keeps the rollout workers running and notices when one is gone."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from common.errors import UNDERSTOOD, RunFailed, ServiceDied, Verdict
from deploy.console.faults import FaultLog


class Runner(Protocol):
    def run(self) -> int: ...
    def stop(self) -> None: ...


class Leases(Protocol):
    """The part of the ledger that the supervisor talks to."""

    def expire(self, worker: str) -> list[int]:
        """Give a dead worker's open leases to the others; their numbers."""
        ...


class Supervised(Protocol):
    """The services whose workers are kept running."""

    @property
    def ledger(self) -> Leases: ...
    @property
    def workers(self) -> Mapping[str, Runner]: ...
    def close(self, cause: str | Verdict) -> None: ...


class WorkerSupervisor:
    """Runs every worker in the background. A dead worker's leases go to the others; below
    `min_workers` the whole run is closed with the cause of the last death.

    A worker that says why it cannot go on closes the run at once: the next one would fail alike.
    """

    def __init__(
        self, services: Supervised, *, min_workers: int, faults: FaultLog | None = None
    ) -> None:
        self._services = services
        self._faults = faults or FaultLog(None)
        self._min_workers = min_workers
        self._pool = ThreadPoolExecutor(len(services.workers), thread_name_prefix="crew")
        self._running: dict[str, Future[int]] = {
            name: self._pool.submit(worker.run) for name, worker in services.workers.items()
        }
        self.deaths: dict[str, str] = {}
        self.failure: Verdict | None = None

    @property
    def alive(self) -> int:
        return len(self._running)

    def check(self) -> None:
        """Handle workers that ended; cheap, to be called a few times per second."""
        for name in [name for name, future in self._running.items() if future.done()]:
            error = self._running.pop(name).exception()
            if error is None or self.failure is not None:
                continue  # it was told to stop, or the ledger is closed
            if isinstance(error, UNDERSTOOD) and not isinstance(error, ServiceDied):
                self._fail(Verdict.of(error))
            else:
                self._bury(name, error)

    def _bury(self, name: str, error: BaseException) -> None:
        self.deaths[name] = self._faults.sentence(name, error)
        lost = self._services.ledger.expire(name)
        if self.alive < self._min_workers:
            sentence = (
                f"{self.alive} rollout workers are left (rollout.min_workers is "
                f"{self._min_workers}); {name} had {len(lost)} open leases: {self.deaths[name]}"
            )
            self._fail(Verdict.of(RunFailed(sentence)))

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
