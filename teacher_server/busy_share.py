"""How much of its time a process works for others who call it from many threads."""

import time
from collections.abc import Callable
from threading import Lock
from types import TracebackType


class BusyShare:
    """Entered by every call; the share of the time up to the end of the last one in which at least
    one was in it, since the end of the one before."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = Lock()
        self._inside = 0
        self._ended = self._since = clock()
        self._share = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._since = self._clock()
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        with self._lock:
            now = self._clock()
            worked, before = now - max(self._since, self._ended), self._ended
            self._share = worked / (now - before) if now > before else 1.0
            self._ended = now
            self._inside -= 1

    def spelt(self) -> bytes:
        """For a record's metadata."""
        with self._lock:
            return f"{self._share:.6f}".encode()
