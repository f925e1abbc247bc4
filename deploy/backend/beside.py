"""Work that another process of the cluster does while this one goes on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def beside(name: str, function: Callable[..., Any], *arguments: Any) -> Iterator[None]:
    """`function(*arguments)` runs beside the block, which ends no sooner, in a process with one
    thread; Ray's tools show it as `name`.

    It is to prepare what would otherwise be done later: how it ended is nobody's concern, as who
    needs the result finds that it is missing, and says why. A block that raises ends it.
    """
    import ray  # not above: the driver sets Ray's environment before it first imports it

    # No task: Ray ends this process where one is cancelled in the moment in which it is done.
    worker: Any = ray.remote(num_cpus=0)(_Worker).remote()
    begun = worker.run.options(name=name).remote(function, *arguments)
    try:
        yield
        ray.wait([begun])
    finally:
        if ray.is_initialized():
            ray.kill(worker)


class _Worker:
    def run(self, function: Callable[..., Any], *arguments: Any) -> None:
        torch.set_num_threads(1)
        function(*arguments)
