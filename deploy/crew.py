"""Keeps the rollout workers running and notices when one is gone."""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from deploy.pipeline import Services


class Runner(Protocol):
    def run(self) -> int: ...
    def stop(self) -> None: ...


class Crew:
    """Runs every worker in the background. A dead worker's leases go to the others; below
    `min_workers` the whole run is closed with the cause of the last death.
    """

    def __init__(self, services: Services, *, min_workers: int) -> None:
        self._services = services
        self._min_workers = min_workers
        self._pool = ThreadPoolExecutor(len(services.workers), thread_name_prefix="crew")
        self._running: dict[str, Future[int]] = {
            name: self._pool.submit(worker.run) for name, worker in services.workers.items()
        }
        self.deaths: dict[str, str] = {}
        self.failure: str | None = None

    @property
    def alive(self) -> int:
        return len(self._running)

    def check(self) -> None:
        """Handle workers that ended; cheap, to be called a few times per second."""
        for name in [name for name, future in self._running.items() if future.done()]:
            error = self._running.pop(name).exception()
            if error is None:
                continue  # it was told to stop, or the ledger is closed
            self.deaths[name] = _first_line(error)
            lost = self._services.ledger.expire(name)
            if self.alive < self._min_workers and self.failure is None:
                self.failure = (
                    f"{self.alive} rollout workers are left (rollout.min_workers is "
                    f"{self._min_workers}); {name} died with {len(lost)} open leases: "
                    f"{self.deaths[name]}"
                )
                self._services.close(self.failure)

    def dismiss(self, seconds: float = 10.0) -> None:
        """Tell everybody to stop and wait up to `seconds` for their last record."""
        deadline = time.monotonic() + seconds
        while self._running and time.monotonic() < deadline:
            self.check()
            time.sleep(0.02)
        self._pool.shutdown(wait=False, cancel_futures=True)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
