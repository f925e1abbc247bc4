"""Where objects live: a `Launcher` creates them, here or in Ray actors (deploy/backend/proxies.py).

The classes themselves do not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch

from deploy.backend.actors import ActorOptions
from deploy.config import RunConfig

T = TypeVar("T")


class Launcher(Protocol):
    """Creates `cls(*args, **kwargs)` somewhere and returns what behaves like it."""

    def __call__(
        self, cls: type[T], *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> T: ...
    def share(self, value: T) -> T: ...
    def any_of(self, replicas: list[T]) -> T: ...
    def end(self, placed: object) -> None: ...


class LocalLauncher:
    """This process: callers bring their own threads, and one replica is as good as many."""

    def __call__(
        self, cls: type[T], *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> T:
        return cls(*args, **kwargs)

    def share(self, value: T) -> T:
        return value

    def any_of(self, replicas: list[T]) -> T:
        return replicas[0]

    def end(self, placed: object) -> None:
        """Nothing: it goes when nobody holds it."""


@contextmanager
def threads_as_on_ray(config: RunConfig) -> Iterator[None]:
    """An ordered run gives the numbers that it would give on Ray: sums are rounded alike only where
    as many threads compute them, and every actor computes with one. Runs that are not ordered take
    what torch has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.learner.ordered else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
