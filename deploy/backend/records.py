"""Records by reference: the buffer holds where they lie, their bytes go from scorer to learner.

Whoever has scored a record says so to the buffer, which asks for it when there is room. The answer
to that question is written into the sender's object store, once, and belongs to the buffer, which
asked: it is still there when the sender has died. The learner reads it where it lies; on another
node it travels once. If the sender's node is gone, the lease is sampled again.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import ray

from common.errors import ServiceDied
from common.exchange.buffer import RecordFacts, Share
from deploy.backend.actor_proxy import ActorProxy, answer
from deploy.backend.hand_over import offered


class BufferProxy(ActorProxy):
    """The buffer, of which this process is a sender or the learner."""

    def put(self, record: Any, timeout: float) -> bool:
        facts = RecordFacts.of(record)
        with offered(record) as offer:
            if offer is None:
                receive = self._method("receive", "put")
                return self._ask(lambda: receive.remote(facts, record, timeout))
            fetch = self._method("fetch", "put")
            return self._ask(lambda: fetch.remote(facts, offer, timeout))

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
