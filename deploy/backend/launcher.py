"""Where objects live: a `Launcher` creates them, here or in Ray actors (deploy/backend/proxies.py).

The classes themselves do not know.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from common.errors import Verdict
from deploy.backend.actors import ActorOptions, threads_of
from deploy.config import RunConfig

T = TypeVar("T")


class Launcher(Protocol):
    """Creates `cls(*args, **kwargs)` somewhere and returns what behaves like it."""

    def __call__(
        self, cls: type[T], *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> T: ...
    def share(self, value: T) -> T: ...
    def any_of(self, role: str) -> Any:
        """A way to those of a role that are there."""
        ...

    def announce(
        self, role: str, members: "list[Any] | Verdict", to: Iterable[object] = ()
    ) -> None:
        """Who of a role is there from now on, or why nobody will be."""
        ...

    def end(self, placed: object) -> None: ...


class LocalLauncher:
    """This process: callers bring their own threads, and one replica is as good as many."""

    def __init__(self) -> None:
        self._there: dict[str, Any] = {}

    def __call__(
        self, cls: type[T], *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> T:
        return cls(*args, **kwargs)

    def share(self, value: T) -> T:
        return value

    def any_of(self, role: str) -> Any:
        return self._there[role]

    def announce(
        self, role: str, members: "list[Any] | Verdict", to: Iterable[object] = ()
    ) -> None:
        if not isinstance(members, Verdict):
            self._there[role] = members[0]

    def end(self, placed: object) -> None:
        """Nothing: it goes when nobody holds it."""


@contextmanager
def threads_as_on_ray(config: RunConfig, say: Callable[[str], object]) -> Iterator[None]:
    """An ordered run gives the numbers that it would give on Ray: sums are rounded alike only where
    as many threads compute them. Runs that are not ordered take what torch has."""
    if not config.learner.ordered:
        yield
        return
    cpus = {"rollout": config.rollout.cpus, "teacher": config.teacher.cpus}
    wanted = threads_of(config.learner.cpus)
    others = [role for role, given in cpus.items() if threads_of(given) != wanted]
    if others:
        say(
            f"learner.ordered: all roles compute with {wanted} threads here (learner.cpus), but "
            f"{' and '.join(others)} with others on Ray; losses may differ in the last bits"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(wanted)
    try:
        yield
    finally:
        torch.set_num_threads(before)
