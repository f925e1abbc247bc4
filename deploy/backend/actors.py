"""The actor class of every role, and what an actor needs.

Imports nothing heavy: the process of a ledger or a buffer must not load torch.
"""

import os
import sys
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from common.errors import UNDERSTOOD, Verdict
from common.exchange.weights import Weights
from deploy.backend.node_checks import Copy, NodeChecks
from deploy.layout import check_layout

LEAST = 19
"""The niceness that gives most way; Ray's processes have 15."""
COMES_ALONG = 2**16
"""Bytes of what lasts that are sent with every answer: a reference takes calls of its own."""


@dataclass(frozen=True, slots=True)
class ActorOptions:
    """What an actor needs."""

    name: str
    """To read in messages and in Ray's own tools; no two in a run have the same."""
    threads: int = 16
    """For its callers: so many may wait in it at a time."""
    cpus: float = 0
    """Reserved for it."""
    gpus: float = 0
    section: str = ""
    """The config section whose bundles were reserved (deploy/backend/bundles.py), if any."""

    @property
    def computing(self) -> int:
        """Threads that it computes with."""
        return threads_of(self.cpus)

    @property
    def yields(self) -> bool:
        """Whether others of the run go first where they want the same core: workers sample ahead,
        and whoever waits for them leaves them the core anyway."""
        return self.section == "rollout" and not self.gpus


def threads_of(cpus: float) -> int:
    """Threads that a process computes with where `cpus` are reserved for it.

    Two busy processes with two OpenMP threads each are several times slower than with one
    (docs/running.md, "Threads"), so every process is pinned to what is its own.
    """
    return max(1, int(cpus))


def yield_cores() -> None:
    """Give this process the least share of a core that others want; Linux has that by thread."""
    threads = Path("/proc/self/task")
    for thread in threads.iterdir() if threads.is_dir() else ():
        with suppress(OSError, ValueError):  # it has just ended
            os.setpriority(os.PRIO_PROCESS, int(thread.name), LEAST)


@dataclass(frozen=True, slots=True)
class Shared:
    """A large argument that lies in the object store once for all actors of a node."""

    reference: Any

    def get(self) -> Any:
        import ray  # not above: the driver sets Ray's environment before it first imports it

        return ray.get(self.reference)


@dataclass(frozen=True, slots=True)
class Raised:
    """A call's answer where it ended with an error that somebody understood."""

    verdict: Verdict


class ActorHost:
    """The one actor class: holds an object, forwards calls, computes with `threads` threads."""

    def __init__(
        self,
        cls: type,
        args: tuple,
        kwargs: dict[str, Any],
        threads: int = 1,
        *,
        yields: bool = False,
    ) -> None:
        check_layout()
        if yields:
            yield_cores()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        self._refusal: Raised | None = None
        taken = {
            name: value.get() if isinstance(value, Shared) else value
            for name, value in kwargs.items()
        }
        try:
            self._object = cls(*args, **taken)
        except UNDERSTOOD as error:
            # Ray would report a constructor's error as the actor's death, as text only.
            self._refusal = Raised(Verdict.of(error))

    def ready(self) -> bool | Raised:
        """True once constructed; why it was not, if somebody understood that."""
        return self._refusal or True

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The method's answer; an error that was understood is handed back as a value."""
        if self._refusal is not None:
            return self._refusal
        try:
            return getattr(self._object, name)(*args, **kwargs)
        except UNDERSTOOD as error:
            return Raised(Verdict.of(error))

    def hear(self, key: str, version: int, members: Any) -> None:
        """Whom this process's routes of that key lead to from now on."""
        from deploy.backend.routes import hear  # a service has none

        hear(key, version, members)


@dataclass(frozen=True, slots=True)
class StoredWeights(Weights):
    """Weights whose bytes lie in the object store; `payload` is empty."""

    first: Shared | list[Any] = field(kw_only=True)
    """The parts that last, or a reference to them where they are more than `COMES_ALONG`."""
    rest: Shared = field(kw_only=True)
    """Those behind them."""

    def copy_on(self, node: str) -> Copy:
        return Copy(node, self.rest.reference.hex())

    def fetched(self) -> Weights:
        """With their bytes, where they lie in the store."""
        import ray  # not above: the driver sets Ray's environment before it first imports it

        first = self.first
        if isinstance(first, Shared):
            first, rest = ray.get([first.reference, self.rest.reference])
        else:
            rest = self.rest.get()
        return Weights(self.version, [*first, *rest], self.digest, canary=self.canary)


class WeightActorHost(ActorHost):
    """Hosts the weight store, which holds `StoredWeights`: their bytes travel by reference."""

    _first: Shared | list[Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._checks = NodeChecks()
        self._taken: dict[str, Future[Any]] = {}
        self._changes = Lock()

    def get(self, node: str, version: int, timeout: float) -> Any:
        """As `WeightStore.get`, and whether who asks is the first of his node."""
        held = self.call("get", version, timeout)
        if isinstance(held, Raised):
            return held
        return held, self._checks.is_first(held.copy_on(node))

    def found(self, copy: Copy, is_whole: bool) -> None:
        """As `NodeChecks`."""
        self._checks.found(copy, is_whole)

    def is_whole(self, copy: Copy, timeout: float) -> bool:
        """As `NodeChecks`."""
        return self._checks.is_whole(copy, timeout)

    def fetch(self, offer: Any) -> None:
        """Take what a publisher offers, for the call of `keep` that follows."""
        with self._changes:  # nobody comes for what was taken before: that publisher died
            self._taken = {key: at for key, at in self._taken.items() if not at.done()}
            taken = self._taken.setdefault(offer.key, Future())
        try:
            taken.set_result(offer.take())
        except Exception as error:  # noqa: BLE001 - handed on to `keep`, whatever it is
            taken.set_exception(error)

    def keep(self, bare: Weights, lasting: Any, payload: Any) -> Any:
        """As `WeightStore.publish`, of the bytes that came with the call or, for the key of an
        offer, those that `fetch` takes, and the lasting ones of the version before."""
        import ray  # not above: the driver sets Ray's environment before it first imports it

        if isinstance(payload, str):
            with self._changes:
                taken = self._taken.setdefault(payload, Future())
            rest = Shared(taken.result())
            with self._changes:
                self._taken.pop(payload, None)
        else:
            rest = Shared(ray.put(payload))
        if lasting is not None:
            many = sum(map(len, lasting)) > COMES_ALONG
            self._first = Shared(ray.put(lasting)) if many else lasting
        facts = bare.version, (), bare.digest
        kept = StoredWeights(*facts, canary=bare.canary, first=self._first, rest=rest)
        return self.call("publish", kept)


class BufferActorHost(ActorHost):
    """Hosts the buffer, which holds references to records."""

    def fetch(self, facts: Any, offer: Any, timeout: float) -> Any:
        """As `Buffer.store`, of a record that the sender offers."""
        return self.call("store", facts, offer.take, timeout)

    def receive(self, facts: Any, record: Any, timeout: float) -> Any:
        """As `Buffer.store`, of a record that came with the call."""
        import ray

        return self.call("store", facts, lambda: ray.put(record), timeout)
