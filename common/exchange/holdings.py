"""Who has which lease since when, and which of them others should not wait for any longer."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from statistics import median

LATE = 3.0
"""Times as long as the usual lease takes, from being handed out to its record in the buffer."""
LEAST_SECONDS = 0.2
"""Less is chance."""
KNOWN, RECENT = 8, 32
"""Leases that tell what is usual: so many at least, and the newest ones."""
MOST_HOLDERS = 2
"""Of a lease: where a scorer holds all up, more workers would only give it more to do."""


class Holdings:
    """Of a ledger, under its lock. A lease that is late may be given to a second worker: whichever
    record comes first is the lease's."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._held: dict[int, dict[str, float]] = {}
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.taken_over = 0
        """Leases that were given to a second worker."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, number: int) -> bool:
        return number in self._held

    def __iter__(self) -> Iterator[int]:
        return iter(self._held)

    def give(self, number: int, worker: str) -> str | None:
        """From now on `worker` has it; who was late with it, if somebody was."""
        holders = self._held.setdefault(number, {})
        late = next(iter(holders), None)
        self.taken_over += late is not None
        holders[worker] = self.clock()
        return late

    def settle(self, number: int) -> None:
        """Its record is there."""
        holders = self._held.pop(number)
        if len(holders) == 1:  # else nobody knows whose it is
            self._recent.extend(self.clock() - since for since in holders.values())

    def leave(self, worker: str) -> list[int]:
        """A worker is gone: the leases that nobody has any more, in order."""
        lost = []
        for number, holders in list(self._held.items()):
            if holders.pop(worker, None) is not None and not holders:
                del self._held[number]
                lost.append(number)
        return sorted(lost)

    def clear(self) -> None:
        """Nobody has anything; what is usual stays."""
        self._held.clear()

    def next_late(self, numbers: Iterable[int], worker: str) -> tuple[float, int] | None:
        """When the first of `numbers` that `worker` may take over is late, by the clock, and which
        that is."""
        if len(self._recent) < KNOWN:
            return None
        patience = max(LEAST_SECONDS, LATE * median(self._recent))
        return min(
            (
                (max(holders.values()) + patience, number)
                for number in numbers
                if worker not in (holders := self._held[number]) and len(holders) < MOST_HOLDERS
            ),
            default=None,
        )

    def ages(self) -> dict[int, dict[str, float]]:
        """Seconds by lease and worker; who had it first comes first."""
        now = self.clock()
        return {
            number: {worker: now - since for worker, since in holders.items()}
            for number, holders in self._held.items()
        }
