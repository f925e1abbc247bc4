"""Runs one function on many jobs: one after the other here, or in a pool of Ray actors.

Parts of a token file (deploy/backend/partitions.py) and cells of a study are such jobs.
"""

import secrets
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from common.errors import UNDERSTOOD, RunFailed
from deploy.backend.actors import ActorHost, Raised, threads_of

Job = TypeVar("Job")
STARTING = object()


class ProcessLost(RunFailed):
    """The processes that ran a job died over it, as often as they may."""


class Caller(Protocol):
    """Runs a function on jobs by key and yields (key, result or exception) as they end."""

    def __call__(
        self, function: Callable[[Job], Any], work: Mapping[Any, Job], /
    ) -> Iterator[tuple[Any, Any]]: ...


def call_here(
    function: Callable[[Job], Any], work: Mapping[Any, Job]
) -> Generator[tuple[Any, Any], None, None]:
    """One after the other in this process."""
    for key, job in work.items():
        try:
            yield key, function(job)
        except UNDERSTOOD as error:
            yield key, error


@dataclass(frozen=True, slots=True)
class ActorPool:
    """A `Caller`: actors that run one job after the other.

    The function travels once to each of them and may keep there what it loaded with its first job.
    As many work at a time as the cluster has room for: one without a job makes room for those that
    wait. A job whose process died is begun again in a fresh one.
    """

    name: str
    """Of the work, to read in Ray's own tools: actors are "encode-0", tasks "encode.part-3"."""
    cpus: float
    """Of each actor, and the threads that it computes with."""
    gpus: float
    most: int | None = None
    """Actors at a time; None: one for every job."""
    tries: int = 3
    """How many processes may die over a job."""

    def __call__(
        self, function: Callable[[Job], Any], work: Mapping[Any, Job], /
    ) -> Generator[tuple[Any, Any], None, None]:
        """Yields `ProcessLost` for a job that was given up, and the error of one that failed."""
        work_round = _Round(self, function, work)
        try:
            yield from work_round.outcomes()
        finally:
            work_round.end()


class _Round:
    """The actors and jobs of one call of a pool."""

    def __init__(
        self, pool: ActorPool, function: Callable[[Job], Any], work: Mapping[Any, Job]
    ) -> None:
        self._pool, self._function, self._work = pool, function, work
        self._waiting, self._died = deque(work), Counter[Any]()
        self._running: dict[Any, tuple[Any, Any]] = {}
        """What an actor is asked: the actor, and the key of its job or STARTING."""
        self._namespace, self._made = f"varkd-{secrets.token_hex(4)}", 0

    def outcomes(self) -> Iterator[tuple[Any, Any]]:
        import ray  # not above: the driver sets Ray's environment before it first imports it

        for _ in range(min(self._pool.most or len(self._waiting), len(self._waiting))):
            self._start()
        while self._running:
            (ready,), _ = ray.wait(list(self._running), num_returns=1)
            actor, key = self._running.pop(ready)
            outcome = _outcome(ready)
            if isinstance(outcome, _Died):
                outcome, key = self._bury(actor, key, outcome)
            else:  # before anybody looks at the outcome: nobody is idle
                self._employ(actor)
            if key is not STARTING:
                yield key, outcome

    def end(self) -> None:
        """Nobody wants the rest."""
        import ray

        if ray.is_initialized():  # else they ended with the connection
            for actor, _ in self._running.values():
                ray.kill(actor)

    def _start(self) -> None:
        import ray

        pool, number = self._pool, self._made
        self._made += 1
        host: Any = ray.remote(type(pool.name, (ActorHost,), {}))
        options = host.options(
            name=f"{pool.name}-{number}",
            namespace=self._namespace,
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        actor = options.remote(_itself, (self._function,), {}, threads_of(pool.cpus))
        self._running[actor.ready.remote()] = (actor, STARTING)

    def _employ(self, actor: Any) -> None:
        """Give an actor the next job, or let it and those that wait for room go."""
        import ray

        if not self._waiting:
            ray.kill(actor)
            return
        key = self._waiting.popleft()
        method = actor.call.options(name=f"{self._pool.name}.{_spelt(key)}")
        self._running[method.remote("__call__", self._work[key])] = (actor, key)
        self._dismiss_starting()

    def _dismiss_starting(self) -> None:
        """Those that wait for room, once nothing waits for them."""
        import ray

        if not self._waiting:
            for ready in [ref for ref, (_, key) in self._running.items() if key is STARTING]:
                ray.kill(self._running.pop(ready)[0])

    def _bury(self, actor: Any, key: Any, died: "_Died") -> tuple[Any, Any]:
        """(outcome, key) of a job that is given up; its key is STARTING as long as it is not."""
        import ray

        ray.kill(actor)
        if key is STARTING:
            key = self._waiting.popleft()  # there is one, or nobody would be starting any more
        self._died[key] += 1
        is_over = self._died[key] >= self._pool.tries
        if not is_over:
            self._waiting.appendleft(key)
        if self._waiting:
            self._start()
        self._dismiss_starting()
        lost = ProcessLost(f"its process died {self._pool.tries} times: {died.how}")
        return (lost, key) if is_over else (None, STARTING)


@dataclass(frozen=True, slots=True)
class _Died:
    """How an actor ended."""

    how: str


def _outcome(ready: Any) -> Any:
    """What a job gave, the exception that ended it, or how its process died."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    from deploy.backend.actor_proxy import ray_reason

    try:
        answer = ray.get(ready)
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return _Died(ray_reason(error))
    return answer.verdict.error() if isinstance(answer, Raised) else answer


def _itself(function: Any) -> Any:
    return function


def _spelt(key: Any) -> str:
    if isinstance(key, Path):
        return key.stem
    return "/".join(map(str, key)) if isinstance(key, tuple) else str(key)
