"""The meeting point of rollout and learner, and the place that enforces the staleness bound.

Records are Arrow batches as described in common/exchange/trajectory.py, one per lease; only their
metadata is looked at here. Free of torch, so that its process stays small.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Condition
from typing import Protocol

import pyarrow as pa

from common.errors import Verdict
from common.exchange.schedule import Schedule


class TrajectorySink(Protocol):
    """Where scored records go (docs/records.md)."""

    def put(self, record: pa.RecordBatch, timeout: float) -> bool:
        """Store the record of one lease; waits up to `timeout` seconds for room.

        True when it is stored, or when nobody waits for it any more; False when there was no room,
        and the caller may try again: this is the backpressure on scorers and workers.

        Raises:
            Closed: the run was ended; the message is the cause.
            InputError, RunFailed: the run was ended with that.
        """
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's records of a step, and the leases of the whole step."""

    records: list[pa.RecordBatch]
    leases: list[int]


class TrajectorySource(Protocol):
    """Where the learner's ranks get the records of their steps from."""

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        """Rank `shard` of `shards`'s records for learner step `step` (0-based); waits up to
        `timeout` seconds for the step to be whole, else None.

        No record is older than the staleness bound, and every record goes to one rank only.

        Raises:
            Closed: the run was ended; the message is the cause.
            InputError, RunFailed: the run was ended with that.
        """
        ...


class LeaseBook(Protocol):
    """The part of the ledger that the buffer talks to; no call waits."""

    def stored(self, number: int, generation: int) -> bool:
        """Note that a lease's record is here; False where it is not wanted (any more)."""
        ...

    def reopen(self, numbers: Iterable[int]) -> None:
        """Have leases sampled anew, whose records were too old."""
        ...


@dataclass(frozen=True, slots=True)
class Assembled:
    """The records of one learner step by lease, and which shards have fetched theirs."""

    records: dict[int, pa.RecordBatch]
    fetched: set[int]


class Buffer:
    """Thread-safe. `put` waits while full, `take` waits until a whole step can be assembled."""

    def __init__(self, schedule: Schedule, *, max_bytes: int, ledger: LeaseBook) -> None:
        self._schedule = schedule
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._changed = Condition()
        self._records: dict[int, pa.RecordBatch] = {}
        self._assembled: dict[int, Assembled] = {}
        self._cause: Verdict | None = None
        self._dropped = 0
        self._duplicates = 0

    def put(self, record: pa.RecordBatch, timeout: float) -> bool:
        """Store one lease's record; False when there was no room within `timeout` seconds.

        A record that nobody waits for (a duplicate, or one of a learner that restarted since) is
        discarded and counts as accepted.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._cause or self._has_room(), timeout):
                return False
            if self._cause:
                raise self._cause.error()
            number = _number(record, b"lease")
            if not self._ledger.stored(number, _number(record, b"generation")):
                self._duplicates += record.num_rows
                return True
            self._records[number] = record
            self._changed.notify_all()
            return True

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        """This shard's records for learner step `step` (0-based); None when none came in time.

        All shards of a step see one assembly: of the records not older than `step - max_staleness`
        those leased first, or in `ordered` mode exactly the leases that belong to the step. A step
        that one shard has got is handed to the others even after `close`: ranks stop together.

        Raises:
            Closed: the run was ended; the message is the cause. Any error that it was ended with
                is raised instead.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._cause or self._assemble(step), timeout)
            assembled = self._assembled.get(step)
            if assembled is None:
                if self._cause:
                    raise self._cause.error()
                return None
            assembled.fetched.add(shard)
            if len(assembled.fetched) == shards:
                del self._assembled[step]
            self._changed.notify_all()
            records = list(assembled.records.values())[shard::shards]
            return Share(records, list(assembled.records))

    def clear(self) -> None:
        """Forget everything: the learner restarted from a checkpoint."""
        with self._changed:
            self._records.clear()
            self._assembled.clear()
            self._changed.notify_all()

    def close(self, cause: str | Verdict) -> None:
        """Wake everybody up with `cause`, as `Closed` or as what the verdict says; the first cause
        stands."""
        with self._changed:
            self._cause = self._cause or Verdict.of(cause)
            self._changed.notify_all()

    def gauges(self) -> dict[str, float]:
        with self._changed:
            images = sum(record.num_rows for record in self._records.values())
            return {
                "buffer/images": images,
                "buffer/bytes": self._bytes(),
                "buffer/fill": images / self._schedule.most_outstanding,
                "buffer/dropped": self._dropped,
                "buffer/duplicates": self._duplicates,
            }

    def _bytes(self) -> int:
        return sum(record.nbytes for record in self._records.values())

    def _has_room(self) -> bool:
        # Below two steps' worth there is always room: what the learner waits for must get in.
        few = len(self._records) < 2 * self._schedule.leases_per_step
        return few or self._schedule.ordered or self._bytes() < self._max_bytes

    def _assemble(self, step: int) -> bool:
        if step in self._assembled:
            return True
        self._drop_stale(step)
        needed = self._schedule.leases_per_step
        if self._schedule.ordered:
            chosen = [n for n in range(step * needed, (step + 1) * needed) if n in self._records]
        else:
            chosen = sorted(self._records)[:needed]  # first issued, first trained
        if len(chosen) < needed:
            return False
        records = {number: self._records.pop(number) for number in chosen}
        self._assembled[step] = Assembled(records, set())
        return True

    def _drop_stale(self, step: int) -> None:
        oldest_allowed = step - self._schedule.max_staleness
        stale = [
            number
            for number, record in self._records.items()
            if 0 <= _number(record, b"oldest") < oldest_allowed
        ]
        for number in stale:
            self._dropped += self._records.pop(number).num_rows
        if stale:
            self._ledger.reopen(stale)
            self._changed.notify_all()


def _number(record: pa.RecordBatch, key: bytes) -> int:
    return int(record.schema.metadata[key])
