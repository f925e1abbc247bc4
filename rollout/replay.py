"""Rollouts of an earlier run, in the place of workers that sample and teachers that score."""

import time
from pathlib import Path
from threading import Event

import pyarrow as pa

from common.errors import Closed
from common.exchange.schedule import Lease
from common.exchange.segments import Segments, renumbered
from common.randomness import Draws
from rollout.worker import POLL_SECONDS, LeaseSource, Scorers


class ReplayWorker:
    """Answers leases with kept records: in the order in which they were leased at first, then in a
    new one for every further epoch."""

    def __init__(
        self, folder: Path, *, name: str, seed: int, ledger: LeaseSource, onward: Scorers
    ) -> None:
        """`onward` is the buffer's way in; `seed` is what further epochs are ordered by.

        Raises:
            InputError: there are no kept records in `folder`, or a file is damaged.
        """
        self._segments = Segments(folder)
        self._draws = Draws(seed, len(self._segments.leases))
        self._name = name
        self._ledger = ledger
        self._onward = onward
        self._stopped = Event()

    def run(self) -> int:
        """Until told to stop, or until the run is over; the number of leases answered.

        Raises:
            InputError: a file is damaged.
        """
        done = 0
        while not self._stopped.is_set():
            done += self._answer(POLL_SECONDS)
        return done

    def produce(self) -> bool:
        """Answer one lease here and now; False when there was none to have."""
        return self._answer(0.0)

    def stop(self) -> None:
        self._stopped.set()

    def _answer(self, timeout: float) -> bool:
        try:
            lease = self._ledger.lease(self._name, timeout)
            if lease is None:
                return False
            return self._onward.score(self.record(lease))
        except Closed:
            self._stopped.set()
            return False

    def record(self, lease: Lease) -> pa.RecordBatch:
        """What was kept for it.

        Raises:
            InputError: a file is damaged.
        """
        started = time.perf_counter()
        leases = self._segments.leases
        at = lease.number
        found = self._segments.record(leases[at if at < len(leases) else self._draws.row(at)])
        return renumbered(
            found,
            {
                "lease": str(lease.number),
                "generation": str(lease.generation),
                "worker": self._name,
                "rollout_seconds": f"{time.perf_counter() - started:.6f}",
            },
        )
