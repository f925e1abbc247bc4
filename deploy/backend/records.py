"""Records by reference: the buffer holds where they lie, their bytes go from scorer to learner.

Whoever has scored a record says so to the buffer, which asks for it when there is room. The answer
to that question is written into the sender's object store, once, and belongs to the buffer, which
asked: it is still there when the sender has died. The learner reads it where it lies; on another
node it travels once. If the sender's node is gone, the lease is sampled again.
"""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from common.errors import ServiceDied
from common.exchange.buffer import RecordFacts, Share
from deploy.backend.actor_proxy import ActorProxy, answer, ray_reason
from deploy.backend.actors import OFFERED


class BufferProxy(ActorProxy):
    """The buffer, of which this process is a sender or the learner."""

    def put(self, record: Any, timeout: float) -> bool:
        facts, context = RecordFacts.of(record), ray.get_runtime_context()
        if context.get_actor_id() is None:  # nobody can call this process back
            receive = self._method("receive", "put")
            return self._ask(lambda: receive.remote(facts, record, timeout))
        with _offered(record) as key:
            fetch, me = self._method("fetch", "put"), context.current_actor
            return self._ask(lambda: fetch.remote(facts, me, key, timeout))

    def take(self, step: int, *, shard: int, shards: int, timeout: float) -> Share | None:
        take = self._method("call", "take")
        share: Share | None = self._ask(
            lambda: take.remote("take", step, shard=shard, shards=shards, timeout=timeout)
        )
        if share is None:
            return None
        try:
            return replace(share, records=answer(self._name, partial(ray.get, share.records)))
        except ServiceDied:  # this one, or only the node where a record lay
            numbers = zip(share.leases[shard::shards], share.records, strict=True)
            self.lost(step, [number for number, at in numbers if self._is_lost(at)])
            return None

    def _is_lost(self, reference: Any) -> bool:
        """Whether what it stands for is gone, as with the node that had it."""
        try:
            answer(self._name, partial(ray.get, reference))
        except ServiceDied:
            return True
        return False


@contextmanager
def _offered(record: Any) -> Iterator[str]:
    """The key under which this actor's `hand_over` gives the record."""
    key = secrets.token_hex(8)
    OFFERED[key] = record
    try:
        yield key
    finally:
        del OFFERED[key]


def taken_from(sender: Any, key: str) -> Any:
    """A reference, of this process's own, to what the actor `sender` offers.

    Raises:
        ServiceDied: it is gone, and what it offered with it.
    """
    record, done = sender.hand_over.options(num_returns=2).remote(key)
    try:
        ray.get(done)
    except RayActorError as error:
        raise ServiceDied(f"the sender of a record died: {ray_reason(error)}") from error
    return record
