"""What stands for an object in an actor, and what its answers mean."""

from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    RayActorError,
    RayError,
    RayTaskError,
)

from common.errors import RunFailed, ServiceDied
from deploy.backend.actors import Raised
from deploy.console.faults import GO_ON


class ActorProxy:
    """Forwards every public method to an actor and waits; errors arrive as themselves."""

    def __init__(self, actor: Any, name: str) -> None:
        self._actor = actor
        self._name = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *args, **kwargs: self._ask(
            lambda: self._method("call", name).remote(name, *args, **kwargs)
        )

    def _method(self, method: str, call: str) -> Any:
        """The actor's own method, under the name that Ray's tools show for `call`."""
        return getattr(self._actor, method).options(name=f"{self._name}.{call}")

    def _ask(self, send: Callable[[], Any]) -> Any:
        return answer(self._name, lambda: ray.get(send()))


def answer(name: str, ask: Callable[[], Any]) -> Any:
    """What the actor called `name` answers; arguments may find no room on their way to it.

    Raises:
        ServiceDied: its process is gone, or what it held.
        RunFailed: Ray itself failed, or ran out of something.
    """
    try:
        answer = ask()
    except (RayActorError, ObjectLostError) as error:
        raise ServiceDied(died(name, error)) from error
    except RayTaskError as error:
        if not isinstance(error.cause, Exception):
            raise
        if isinstance(error.cause, RayError):
            raise failed(name, error.cause) from error
        raise error.cause from error
    except RayError as error:
        raise failed(name, error) from error
    if not isinstance(answer, Raised):
        return answer
    error = answer.verdict.error()
    # A neighbour of the actor died, not the actor.
    raise RunFailed(str(error)) if isinstance(error, ServiceDied) else error


def died(name: str, error: RayError) -> str:
    """The sentence about a process that is gone."""
    return f"the process of {name} died: {ray_reason(error)}; {GO_ON}"


def failed(name: str, error: RayError) -> RunFailed:
    advice = GO_ON
    if isinstance(error, ObjectStoreFullError):
        advice = f"raise cluster.object_store_mb; {GO_ON}"
    if isinstance(error, OutOfDiskError):
        advice = f"the disk of Ray's temporary folder is full: make room; {GO_ON}"
    return RunFailed(f"{name}: {ray_reason(error)}; {advice}")


def ray_reason(error: BaseException) -> str:
    """Ray's own account in a line: the cause is in its last one, guesses follow the first point."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    last = lines[-1] if lines else type(error).__name__
    detail = last.rpartition("Worker exit detail: ")[2]
    for guesses in (" There are some potential root causes", " Some common causes include"):
        detail = detail.partition(guesses)[0]
    return detail.rstrip(".")
