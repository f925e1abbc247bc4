"""The meeting point of rollout and learner, and the place that enforces the staleness bound.

Records are Arrow batches as described in common/exchange/trajectory.py, one per lease; only their
metadata is looked at here. In a process of its own the buffer holds references to records that lie
elsewhere (deploy/backend/records.py). Free of torch, so that its process stays small.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from typing import Any, Protocol

import pyarrow as pa

from common.errors import Verdict
from common.exchange.assembly import Assembled, Share
from common.exchange.schedule import Schedule


class TrajectorySink(Protocol):
    """Where scored records go (docs/records.md)."""

    def put(self, record: pa.RecordBatch, timeout: float) -> bool:
        """Store the record of one lease; waits up to `timeout` seconds for room.

        True when it is stored, or when nobody waits for it any more; False when there was no room,
        and the caller may try again: this is the backpressure on scorers and workers. The bytes
        travel once there is room, and only then.

        Raises:
            Closed: the run was ended; the message is the cause.
            InputError, RunFailed: the run was ended with that.
        """
        ...


class TrajectorySource(Protocol):
    """Where the learner's ranks get the records of their steps from."""

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        """Rank `shard` of `shards`'s records for learner step `step` (0-based); waits up to
        `timeout` seconds for the step to be whole, else None; None at once when the learner
        restarts meanwhile.

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

    def reopen(self, numbers: Iterable[int], generation: int) -> None:
        """Have leases of `generation` sampled anew, whose records were too old or are lost."""
        ...


@dataclass(frozen=True, slots=True)
class RecordFacts:
    """All that the buffer looks at of a record."""

    lease: int
    generation: int
    oldest: int
    """Lowest version of the student that sampled a row of it, or -1."""
    images: int
    nbytes: int

    @classmethod
    def of(cls, record: pa.RecordBatch) -> "RecordFacts":
        found = record.schema.metadata
        lease, generation, oldest = (int(found[k]) for k in (b"lease", b"generation", b"oldest"))
        return cls(lease, generation, oldest, record.num_rows, record.nbytes)


@dataclass(frozen=True, slots=True)
class Held:
    """A record, or a reference to it, and its facts."""

    content: Any
    facts: RecordFacts


class Buffer:
    """Thread-safe. `put` waits while full, `take` waits until a whole step can be assembled.

    The ledger is in another process: it is asked while our lock is free, so that nobody waits for
    it who does not have to. What changes meanwhile, the generation tells: records are of one
    generation, the newest that is known, and nothing of an earlier one comes in or goes back.
    """

    def __init__(self, schedule: Schedule, *, max_bytes: int, ledger: LeaseBook) -> None:
        self._schedule = schedule
        self._max_bytes = max_bytes
        self._ledger = ledger
        self._changed = Condition()
        self._generation = 0
        self._records: dict[int, Held] = {}
        self._arriving: list[int] = []  # bytes of what has room and is not stored yet
        self._assembled: dict[int, Assembled] = {}
        self._cause: Verdict | None = None
        self._dropped = 0
        self._duplicates = 0
        self._lost = 0

    def put(self, record: pa.RecordBatch, timeout: float) -> bool:
        """Store one lease's record; False when there was no room within `timeout` seconds.

        A record that nobody waits for (a duplicate, or one of a learner that restarted since) is
        discarded and counts as accepted.
        """
        return self.store(RecordFacts.of(record), lambda: record, timeout)

    def store(self, facts: RecordFacts, fetch: Callable[[], Any], timeout: float) -> bool:
        """As `put`, of a record that is elsewhere: `fetch` brings it, or a reference to it, here,
        and is called when there is room.

        Raises:
            ServiceDied: of `fetch`; whoever had the record is gone, and nothing is stored.
        """
        with self._room_for(facts.nbytes, timeout) as has_room:
            if not has_room:
                return False
            held = Held(fetch(), facts)
            is_wanted = self._ledger.stored(facts.lease, facts.generation)
            with self._changed:
                if is_wanted:
                    self._renew(facts.generation)
                if not is_wanted or facts.generation != self._generation:
                    self._duplicates += facts.images
                elif not any(step.fill(facts.lease, held.content) for step in self._mended()):
                    self._records[facts.lease] = held
        return True

    @contextmanager
    def _room_for(self, size: int, timeout: float) -> Iterator[bool]:
        """Whether there is room for `size` bytes; it is kept for the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._cause or self._has_room(), timeout)
            if self._cause:
                raise self._cause.error()
            has_room = self._has_room()
            self._arriving += [size] * has_room
        try:
            yield has_room
        finally:
            if has_room:
                with self._changed:
                    self._arriving.remove(size)
                    self._changed.notify_all()

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        """This shard's records for learner step `step` (0-based); None when none came in time.

        All shards of a step see one assembly: of the records that are not too old for it
        (`Schedule.oldest_version`) those leased first, or in `ordered` mode exactly the leases that
        belong to the step. A step that one shard has got is handed to the others even after
        `close`: ranks stop together.

        Raises:
            Closed: the run was ended; the message is the cause. Any error that it was ended with
                is raised instead.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            generation = self._generation
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._has_news(step, generation), deadline - time.monotonic()
                )
                if generation != self._generation:  # whoever asked has restarted since
                    return None
                stale = self._drop_stale(step)
                share = self._share(step, shard, shards)
                if share is None and self._cause:
                    raise self._cause.error()
            if stale:
                self._ledger.reopen(stale, generation)
            if share is not None or time.monotonic() >= deadline:
                return share

    def lost(self, step: int, numbers: list[int]) -> None:
        """Records of `step` are gone where they lay, as whoever took them found out: their leases
        are sampled again, and until then nobody gets the step. Every lease stays in its step."""
        with self._changed:
            assembled, generation = self._assembled.get(step), self._generation
            gone = assembled.lose(numbers) if assembled else []
            self._lost += len(gone)
        if gone:
            self._ledger.reopen(gone, generation)

    def clear(self, generation: int) -> None:
        """Forget everything before `generation`: the learner restarted from a checkpoint, and the
        ledger gave it that number."""
        with self._changed:
            self._renew(generation)

    def close(self, cause: str | Verdict) -> None:
        """Wake everybody up with `cause`, as `Closed` or as what the verdict says; the first cause
        stands."""
        with self._changed:
            self._cause = self._cause or Verdict.of(cause)
            self._changed.notify_all()

    def gauges(self) -> dict[str, float]:
        with self._changed:
            images = sum(held.facts.images for held in self._records.values())
            return {
                "buffer/images": images,
                "buffer/bytes": self._bytes(),
                "buffer/fill": images / self._schedule.most_outstanding,
                "buffer/dropped": self._dropped,
                "buffer/duplicates": self._duplicates,
                "buffer/lost": self._lost,
            }

    def _renew(self, generation: int) -> None:
        """Begin `generation` with nothing, if it is a new one."""
        if generation <= self._generation:
            return
        self._generation = generation
        self._records.clear()
        self._assembled.clear()
        self._changed.notify_all()

    def _mended(self) -> list[Assembled]:
        """Steps that wait for a record in the place of a lost one."""
        return [assembled for assembled in self._assembled.values() if assembled.missing]

    def _bytes(self) -> int:
        return sum(held.facts.nbytes for held in self._records.values())

    def _has_room(self) -> bool:
        # Below two steps' worth there is always room: what the learner waits for must get in.
        leases = len(self._records) + len(self._arriving)
        few = leases < 2 * self._schedule.leases_per_step or bool(self._mended())
        size = self._bytes() + sum(self._arriving)
        return few or self._schedule.by_step or size < self._max_bytes

    def _has_news(self, step: int, generation: int) -> bool:
        """Whether `take` has something to do; changes nothing."""
        is_over = self._cause is not None or generation != self._generation
        assembled = self._assembled.get(step)
        is_whole = not assembled.missing if assembled else self._leases_of(step) is not None
        return is_over or is_whole or bool(self._stale(step))

    def _stale(self, step: int) -> list[int]:
        """Leases whose records are too old for `step`."""
        if step in self._assembled or self._cause:
            return []
        oldest_allowed = self._schedule.oldest_version(step)
        return [
            number
            for number, held in self._records.items()
            if 0 <= held.facts.oldest < oldest_allowed
        ]

    def _leases_of(self, step: int) -> list[int] | None:
        """What `step` would be made of now; None as long as that is not enough."""
        needed = self._schedule.leases_per_step
        if self._schedule.by_step:
            chosen = [n for n in range(step * needed, (step + 1) * needed) if n in self._records]
        else:
            chosen = sorted(self._records)[:needed]  # first issued, first trained
        return chosen if len(chosen) == needed else None

    def _drop_stale(self, step: int) -> list[int]:
        stale = self._stale(step)
        for number in stale:
            self._dropped += self._records.pop(number).facts.images
        if stale:
            self._changed.notify_all()
        return stale

    def _share(self, step: int, shard: int, shards: int) -> Share | None:
        """The shard's records, of an assembly that is made for the first one who asks."""
        if step not in self._assembled:
            chosen = None if self._cause else self._leases_of(step)
            if chosen is None:
                return None
            records = {number: self._records.pop(number).content for number in chosen}
            self._assembled[step] = Assembled(records)
        # Another rank may be a step behind, and find that one of its records is lost.
        oldest = step - (shards > 1)
        self._assembled = {at: kept for at, kept in self._assembled.items() if at >= oldest}
        self._changed.notify_all()
        return self._assembled[step].share(shard, shards)
