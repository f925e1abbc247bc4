"""Make plain objects live in Ray actors and still look like themselves."""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from common.errors import Verdict
from common.exchange.buffer import Buffer
from common.exchange.weights import Payload, Weights, WeightStore
from deploy.backend.actor_proxy import ActorProxy, answer, failed
from deploy.backend.actors import (
    ActorHost,
    ActorOptions,
    BufferActorHost,
    Shared,
    WeightActorHost,
)
from deploy.backend.bundles import Bundles
from deploy.backend.hand_over import offered
from deploy.backend.records import BufferProxy
from deploy.backend.reservation import HeldBundle, Reservation, reserved
from deploy.backend.routes import Route

T = TypeVar("T")
PATIENCE_SECONDS = 5.0
CHECKED_ONCE = 2**26
"""Bytes of a version from which on asking who checks it takes less time than checking it."""
CHECK_SECONDS = 5.0
"""How long a worker waits for another one's check."""


def here() -> NodeAffinitySchedulingStrategy:
    """The driver's node, for services: what reserves nothing Ray puts on any node, also where it
    would only prefer this one, and a run cannot lose them."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


class WeightsProxy(ActorProxy):
    """The weight store, with payloads in the object store: one transfer per node, and of what lasts
    one for all versions.

    The publishing learner may die, so the store's process owns the payload.
    """

    _sent: Payload | None = None
    """What the store has of this publisher that lasts."""

    def publish(self, weights: Weights) -> None:
        lasting = weights.payload[: weights.lasting]
        sent_before = self._sent is not None and [*map(id, self._sent)] == [*map(id, lasting)]
        # An array's bytes stay where they are until Ray copies them to the store; others would go
        # through pickle first.
        arrays = [np.frombuffer(part, np.uint8) for part in weights.payload]
        first, rest = arrays[: weights.lasting], arrays[weights.lasting :]
        with offered(rest) as offer:
            sent: Any = rest
            if offer is not None:
                # They are copied there while they are added up here.
                self._method("fetch", "publish").remote(offer)
                sent = offer.key
            bare = replace(weights.sealed(), payload=())
            keep = self._method("keep", "publish")
            self._ask(lambda: keep.remote(bare, None if sent_before else first, sent))
        self._sent = lasting

    def get(self, version: int, timeout: float) -> Weights:
        """As `WeightSource.get`; of many bytes the first worker of a node adds them up for all.

        Raises:
            ValueError: they were damaged on the way.
        """
        node = ray.get_runtime_context().get_node_id()
        get = self._method("get", "get")
        held, is_first = self._ask(lambda: get.remote(node, version, timeout))
        weights: Weights = answer(self._name, held.fetched)
        if sum(map(len, weights.payload)) < CHECKED_ONCE:
            return weights
        copy = held.copy_on(node)
        if not is_first:
            is_whole = self._method("is_whole", "is_whole")
            if self._ask(lambda: is_whole.remote(copy, CHECK_SECONDS)):
                return replace(weights, is_checked=True)
        try:
            weights.verified()
        except ValueError:
            self._method("found", "found").remote(copy, False)
            raise
        self._method("found", "found").remote(copy, True)
        return replace(weights, is_checked=True)


BY_REFERENCE: Mapping[type, tuple[type[ActorHost], type[ActorProxy]]] = {
    WeightStore: (WeightActorHost, WeightsProxy),
    Buffer: (BufferActorHost, BufferProxy),
}
"""Classes whose large arguments or answers do not travel with the call: who hosts them, and who
stands for them. Of all others the arguments and answers are sent as they are."""


class RayLauncher:
    """A `Launcher`: every object becomes an actor of its own.

    Ray's tools (`ray list actors`, the dashboard) show an actor by its role: the class is called
    like the one that it hosts, the name is `ActorOptions.name`, and a task is "worker-0.run". Names
    lie in a namespace of this launcher, so two runs share a cluster without a collision.
    """

    def __init__(self) -> None:
        self.namespace = f"varkd-{secrets.token_hex(4)}"
        self._actors: list[Any] = []
        self.names: dict[Any, str] = {}
        self._turn = 0
        self._there: dict[str, tuple[int, list[Any] | Verdict]] = {}
        self._reservation = Reservation([])
        self._rooms: dict[Any, tuple[str, HeldBundle | None]] = {}
        self._made: dict[Any, Any] = {}

    @contextmanager
    def reserved(
        self, wanted: Sequence[Bundles], seconds: float, say: Callable[[str], object]
    ) -> Iterator[None]:
        """Room for the actors that are placed in the block, as soon as the cluster has it.

        Raises:
            InputError: there was none for `seconds`, or a private cluster is too small.
        """
        with reserved(wanted, seconds, say) as self._reservation:
            yield

    def give_ranks_back(self) -> None:
        """Ray Train is about to ask for the room of the learner's ranks."""
        self._reservation.give_ranks_back()

    def __call__(
        self, cls: type[T], *args: Any, site: ActorOptions | None = None, **kwargs: Any
    ) -> T:
        name = site.name if site else None  # Ray refuses a name that is taken
        site = site or ActorOptions(cls.__name__)
        host, proxy = BY_REFERENCE.get(cls, (ActorHost, ActorProxy))
        actor_class: Any = ray.remote(type(cls.__name__, (host,), {}))
        strategy, held = self._reservation.take(site.section)
        if not (site.section or site.cpus or site.gpus):  # a service
            strategy = here()
        actor = actor_class.options(
            name=name,
            namespace=self.namespace,
            max_concurrency=site.threads,
            num_cpus=site.cpus,
            num_gpus=site.gpus,
            scheduling_strategy=strategy,
            label_selector=None if held else self._reservation.labels(site.section) or None,
        ).remote(cls, args, kwargs, site.computing, yields=site.yields)
        self._actors.append(actor)
        self.names[actor] = site.name
        self._rooms[actor] = site.section, held
        return cast(T, proxy(actor, site.name))

    def share(self, value: T) -> T:
        """What actors take for `value` as a keyword: read from shared memory where it lies once."""
        try:
            return cast(T, Shared(ray.put(value)))
        except RayError as error:
            raise failed("the token data", error) from error

    def any_of(self, role: str) -> Any:
        """A way to those of a role that are there, whoever that is at the time; it starts at
        another one for every caller."""
        self._turn += 1
        return Route(self._key(role), *self._there[role], self._turn)

    def announce(
        self, role: str, members: "list[Any] | Verdict", to: Iterable[object] = ()
    ) -> None:
        """Who of a role is there from now on, or why nobody will be: for who asks for a way to them
        later, and for actors that hold one. Returns at once."""
        version = self._there.get(role, (0,))[0] + 1
        self._there[role] = version, members
        for placed in to:
            actor = cast(ActorProxy, placed)._actor
            actor.hear.options(name=f"{self.names[actor]}.hear").remote(
                self._key(role), version, members
            )

    def _key(self, role: str) -> str:
        return f"{self.namespace}/{role}"

    def wait_ready(self, say: Callable[[str], object] = lambda what: None) -> None:
        """Block until every actor is up; `say` hears of those that are not yet.

        A constructor's error is raised here, as itself.
        """
        missing = {actor.ready.remote(): self.names[actor] for actor in self._actors}
        while missing:
            say(f"waiting for {', '.join(missing.values())}")
            ready, _ = ray.wait(list(missing), timeout=PATIENCE_SECONDS)
            for reference in ready:
                answer(missing.pop(reference), partial(ray.get, reference))

    def is_there(self, placed: object) -> bool:
        """Whether the actor behind `placed` found its room and is up, or will never be."""
        actor = cast(ActorProxy, placed)._actor
        if actor not in self._made:
            self._made[actor] = actor.ready.remote()
        return bool(ray.wait([self._made[actor]], timeout=0)[0])

    def living(self) -> dict[Any, str]:
        """The names of the actors that were placed and not ended."""
        return {actor: self.names[actor] for actor in list(self._actors)}

    def end(self, placed: object) -> None:
        """End the actor behind `placed`; what it takes is free for another."""
        actor = cast(ActorProxy, placed)._actor
        self._actors.remove(actor)
        self._made.pop(actor, None)
        ray.kill(actor)
        self._reservation.give_back(*self._rooms.pop(actor))

    def shutdown(self) -> None:
        """End every actor that was placed."""
        for actor in self._actors:
            ray.kill(actor)
