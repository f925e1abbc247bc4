"""The way to one of several alike actors, of whom some die and others come.

Who sends holds a `Route` and never asks who is there: the driver, whose supervisor knows, tells
every process that holds one (`ActorHost.hear`) when that changes. Only where nobody is left to
send to does a call wait for such news.
"""

from threading import Condition
from typing import Any
from weakref import WeakSet

from common.errors import ServiceDied, Verdict

AGAIN_SECONDS = 2.0
"""Without news, those are tried again that seemed to be dead: a call may fail on its way."""


class Route:
    """Stands for all of them: call after call goes to the next, and one that died is left out.

    Only for calls that may be repeated, such as scoring: the buffer discards duplicates.
    """

    def __init__(
        self,
        key: str,
        version: int,
        members: "list[Any] | Verdict",
        first: int,
        again_seconds: float = AGAIN_SECONDS,
    ) -> None:
        """`members` are those that are there, or why there will be none any more."""
        self._key, self._first, self._again_seconds = key, first, again_seconds
        self._news = Condition()
        self._version = -1
        self._members: list[Any] | Verdict = []
        self._turns: list[Any] = []
        self._hear(version, members)
        _HELD.setdefault(key, WeakSet()).add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return Route, (self._key, self._version, self._members, self._first)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            while True:
                chosen = self._next()
                try:
                    return getattr(chosen, name)(*args, **kwargs)
                except ServiceDied:
                    self._leave_out(chosen)

        return call

    def _next(self) -> Any:
        """Whose turn it is.

        Raises:
            Exception: of the verdict that there will be nobody any more.
        """
        with self._news:
            while True:
                if isinstance(self._members, Verdict):
                    raise self._members.error()
                if self._turns:
                    self._turns.append(chosen := self._turns.pop(0))
                    return chosen
                if not self._news.wait(self._again_seconds):
                    self._turns = list(self._members)

    def _leave_out(self, member: Any) -> None:
        with self._news:
            self._turns = [other for other in self._turns if other is not member]

    def _hear(self, version: int, members: "list[Any] | Verdict") -> None:
        with self._news:
            if version <= self._version:  # news may overtake each other
                return
            self._version, self._members = version, members
            if isinstance(members, list):
                first = self._first % max(1, len(members))
                self._turns = members[first:] + members[:first]
            self._news.notify_all()


_HELD: dict[str, WeakSet[Route]] = {}
"""All of this process, by key."""


def hear(key: str, version: int, members: "list[Any] | Verdict") -> None:
    """Tell all routes of this process."""
    for route in list(_HELD.get(key, ())):
        route._hear(version, members)
