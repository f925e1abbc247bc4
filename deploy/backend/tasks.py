"""Runs one function on many jobs: one after the other here, or as Ray tasks."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

from common.errors import UNDERSTOOD, RunFailed, Verdict

Job = TypeVar("Job")


class Caller(Protocol):
    """Runs a function on jobs by key and yields (key, result or exception) as they end."""

    def __call__(
        self, function: Callable[[Job], Any], work: dict[Any, Job], /
    ) -> Iterator[tuple[Any, Any]]: ...


def call_here(function: Callable[[Job], Any], work: dict[Any, Job]) -> Iterator[tuple[Any, Any]]:
    """One after the other in this process."""
    for key, job in work.items():
        try:
            yield key, function(job)
        except UNDERSTOOD as error:
            yield key, error


def _understood(function: Callable[[Job], Any], job: Job) -> Any:
    """`function(job)`; a failure that was understood is handed back as a value."""
    try:
        return function(job)
    except UNDERSTOOD as error:
        return Verdict.of(error)


def call_on_ray(cpus: float, gpus: float, tries: int) -> Caller:
    """As many Ray tasks at a time as the cluster has room for; a lost process is tried again."""

    def call(function: Callable[[Job], Any], work: dict[Any, Job]) -> Iterator[tuple[Any, Any]]:
        import ray  # not above: the driver sets Ray's environment before it first imports it
        from ray.exceptions import RayError, RayTaskError

        from deploy.backend.proxies import ray_reason

        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=tries - 1)(_understood)
        running = {task.remote(function, job): key for key, job in work.items()}
        try:
            while running:
                (ready,), _ = ray.wait(list(running), num_returns=1)
                key = running.pop(ready)
                try:
                    answer = ray.get(ready)
                    yield key, answer.error() if isinstance(answer, Verdict) else answer
                except RayTaskError as error:
                    cause = error.cause
                    yield key, cause if isinstance(cause, Exception) else error
                except RayError as error:
                    yield key, RunFailed(f"Ray lost it {tries} times: {ray_reason(error)}")
        finally:
            for reference in running:
                ray.cancel(reference, force=True)

    return call
