"""The actors of one role, who come and go while the run goes on."""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import InputError
from deploy.backend.role import Role, Runner

UNSAID_SECONDS = 10.0
"""Who is there sooner does not wait for room."""


class Places(Protocol):
    """Where the actors live: the part of a launcher that their supervisor talks to."""

    def end(self, placed: Any, /) -> object:
        """Free what one takes that is not needed, or not alive, any more."""
        ...

    def is_there(self, placed: Any, /) -> bool:
        """Whether one has found its room."""
        ...

    def announce(self, role: str, members: Any, /, to: Any) -> object:
        """Tell `to` who is there, or why nobody will be."""
        ...


@dataclass(frozen=True, slots=True)
class Ended:
    """One whose `run` is over."""

    name: str
    member: Runner
    error: BaseException | None
    lived: float
    """Seconds."""
    was_coming: bool
    was_retiring: bool


class Crew:
    """Runs every actor in the background: `role.limits.count` of them from the start, others as
    they are added. To be used from one thread, which it never keeps waiting."""

    def __init__(
        self,
        name: str,
        role: Role[Runner],
        place: Places,
        pool: Executor,
        tell: Callable[[str], object],
    ) -> None:
        self.name, self.role, self.limits = name, role, role.limits
        self._place = place
        self._pool = pool
        self._tell = tell
        self._members: dict[str, Runner] = {}
        self._running: dict[str, Future[int]] = {}
        self._began: dict[str, float] = {}
        self._coming: dict[str, float | None] = {}
        self._retiring: set[str] = set()
        self._made = 0
        for first, member in role.first.items():
            self._employ(first, member)
        while self.alive < self.limits.count:
            self.add()

    @property
    def members(self) -> Mapping[str, Runner]:
        """Those that run, by name; one that retires is among them until its last work is done."""
        return self._members

    @property
    def alive(self) -> int:
        """Who runs, or waits for room, and is to go on."""
        return len(self._running.keys() - self._retiring)

    @property
    def pending(self) -> list[str]:
        """Those among them that are not there yet."""
        return [name for name in self._coming if name not in self._retiring]

    @property
    def retiring(self) -> list[str]:
        return sorted(self._retiring & self._running.keys())

    @property
    def there(self) -> dict[str, Runner]:
        """Those among them that have found their room."""
        away = {*self._coming, *self._retiring}
        return {name: member for name, member in self._members.items() if name not in away}

    def add(self) -> str:
        """Make one more and let it run; its name. On a cluster that is full it waits.

        Raises:
            ValueError: the services have no threads for another one.
        """
        if self.alive >= self.limits.most:
            raise ValueError(f"{self.alive} {self.limits.noun} run, and no more may")
        name = f"{self.role.member}-{self._made}"
        self._employ(name, self.role.make(name))
        self._coming[name] = self._began[name]
        return name

    def _employ(self, name: str, member: Runner) -> None:
        self._made += 1
        self._members[name] = member
        self._began[name] = time.monotonic()
        self._running[name] = self._pool.submit(member.run)

    def retire(self, name: str) -> None:
        """Let one finish what it has begun and end; what it could not hand over, the others get.
        Returns at once: it is gone from `members` when that is done.

        Raises:
            ValueError: nobody of that name is to go on, or too few would be left.
        """
        if name in self._retiring or name not in self._running:
            raise ValueError(f"no {name} runs that could retire")
        if self.alive <= self.limits.least:
            raise ValueError(f"without {name} there are fewer than {self.limits.range}")
        self.greet()
        self._retiring.add(name)
        if name in self._coming:
            self._place.end(self._members[name])  # it would hear of it when it has found its room
        else:
            self._pool.submit(self._members[name].stop)

    def scale(self, count: int) -> list[str]:
        """Add or retire some until `count` are to go on; their names. Whoever waits for room goes
        first, then the youngest.

        Raises:
            InputError: `count` lies outside of what the run was begun with.
        """
        if not self.limits.least <= count <= self.limits.most:
            raise InputError(
                f"{self.name}={count}, but this run has {self.limits.range} {self.limits.noun}; "
                "choose a number between them, or begin it again with others"
            )
        changed = [self.add() for _ in range(count - self.alive)]
        leaving = [*self.pending[::-1], *[*self.there][::-1]][: max(0, self.alive - count)]
        for name in leaving:
            self.retire(name)
        return changed + leaving

    def ended(self) -> Iterator[Ended]:
        """Those whose `run` is over since the last call; they are members no more."""
        for name in [name for name, future in self._running.items() if future.done()]:
            error, was_coming = self._running.pop(name).exception(), name in self._coming
            self._coming.pop(name, None)
            lived, was_retiring = time.monotonic() - self._began.pop(name), name in self._retiring
            yield Ended(name, self._members.pop(name), error, lived, was_coming, was_retiring)

    def greet(self) -> None:
        """Who waited for room is there, or waits for long."""
        for name in self.pending:
            since = self._coming[name]
            if self._place.is_there(self._members[name]):
                del self._coming[name]
                if since is None:
                    self._tell(f"{name} has found its room")
            elif since is not None and time.monotonic() - since > UNSAID_SECONDS:
                self._coming[name] = None
                self._tell(f"{name} waits for room on the cluster; the run goes on meanwhile")
