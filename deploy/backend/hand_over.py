"""How large bytes change their owner: the actor that asks for them owns them from then on.

Ray frees an object with the process that put it, and lets nobody put what is to belong to another
(since 2.56). The answer to a call, however, is written into the object store by the one who was
asked, once, and belongs to the one who asked.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError

from common.errors import ServiceDied
from deploy.backend.actor_proxy import died

_OFFERED: dict[str, Any] = {}
"""What this process has ready for others to fetch."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What an actor of any class, Ray Train's as well, has ready for another one."""

    sender: Any
    name: str
    key: str

    def take(self) -> Any:
        """A reference, of this process's own, to what is offered.

        Raises:
            ServiceDied: the sender is gone, and what it offered with it.
        """
        taken, done = self.sender.__ray_call__.options(num_returns=2).remote(_give, self.key)
        try:
            ray.get(done)
        except RayActorError as error:
            raise ServiceDied(died(self.name, error)) from error
        return taken


@contextmanager
def offered(value: Any) -> Iterator[Offer | None]:
    """The offer of `value` during the block; None in a process that nobody can call back."""
    context = ray.get_runtime_context()
    if context.get_actor_id() is None:
        yield None
        return
    key = secrets.token_hex(8)
    _OFFERED[key] = value
    try:
        yield Offer(context.current_actor, context.get_actor_name() or "the sender", key)
    finally:
        del _OFFERED[key]


def _give(actor: Any, key: str) -> tuple[Any, bool]:
    """Two answers: the caller waits for the second and owns the first, which outlives this
    process."""
    return _OFFERED[key], True
