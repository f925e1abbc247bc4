"""The other learner processes, as one rank sees them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Event
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed

from common.errors import RunFailed

T = TypeVar("T")
SIGN_SECONDS = 1.0
MEET_SECONDS = 20.0
BUSY, DONE, FAILED = range(3)


class ProcessGroup(Protocol):
    """The other learner processes; all of them make the same calls in the same order."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all ranks, on every rank, in place and returned.

        All bring the same shape and type. Summed in the type that it has: bring float64 where
        rounding counts. Waits for the slowest rank.

        Raises:
            RuntimeError: a rank left.
        """
        ...

    def begin_sum(self, tensor: Tensor) -> Callable[[], object]:
        """As `sum_`, beside what the caller does next: the tensor is the sum, and may be touched
        again, once what is returned was called.

        Raises:
            RuntimeError: a rank left; of what is returned as well.
        """
        ...

    def barrier(self) -> None:
        """Wait until every rank is here.

        Raises:
            RuntimeError: a rank left.
        """
        ...

    def all_say(self, number: int) -> bool:
        """Whether all ranks come here within seconds, with the same number: to be asked where some
        may be somewhere else, or gone."""
        ...


class SingleProcess:
    """A learner without company."""

    rank = 0
    world = 1

    def sum_(self, tensor: Tensor) -> Tensor:
        return tensor

    def begin_sum(self, tensor: Tensor) -> Callable[[], object]:
        return lambda: self.sum_(tensor)

    def barrier(self) -> None: ...

    def all_say(self, number: int) -> bool:
        return True


class TorchProcesses:
    """The processes of torch's default group, which is set up already."""

    def __init__(self, meet_seconds: float = MEET_SECONDS) -> None:
        """Made by all of them; `all_say` waits for so long."""
        self.rank = distributed.get_rank()
        self.world = distributed.get_world_size()
        # Of its own: nothing else waits in it.
        patience = timedelta(seconds=meet_seconds)
        self._meeting = distributed.new_group(backend="gloo", timeout=patience)

    def sum_(self, tensor: Tensor) -> Tensor:
        distributed.all_reduce(tensor)
        return tensor

    def begin_sum(self, tensor: Tensor) -> Callable[[], object]:
        work = distributed.all_reduce(tensor, async_op=True)
        assert work is not None, "this rank is one of the group"
        return work.wait

    def barrier(self) -> None:
        distributed.barrier()

    def all_say(self, number: int) -> bool:
        said = torch.zeros(self.world, dtype=torch.int64)
        said[self.rank] = number
        try:
            distributed.all_reduce(said, group=self._meeting)
        except RuntimeError:  # somebody does not come
            return False
        return bool((said == number).all())


def first_says(ranks: ProcessGroup, number: int) -> int:
    """Rank 0's number, on every rank; of a shared folder, say, which others may see late."""
    return int(ranks.sum_(torch.tensor(int(number) if ranks.rank == 0 else 0)))


def led(ranks: ProcessGroup, work: Callable[[], T]) -> T | None:
    """What rank 0 makes of `work`, for which the others wait, however long it takes: meanwhile all
    speak to one another, because libraries of communication take a long silence for a death.

    Raises:
        RunFailed: rank 0 could not do it, and says why itself.
    """
    if ranks.rank:
        while (said := first_says(ranks, BUSY)) == BUSY:
            pass
        if said == FAILED:
            raise RunFailed("learner rank 0 failed in what the others waited for")
        return None
    ended, said = Event(), FAILED

    def speak() -> None:
        while not ended.wait(SIGN_SECONDS):
            first_says(ranks, BUSY)

    with ThreadPoolExecutor(1, thread_name_prefix="signs-of-life") as pool:
        signs = pool.submit(speak)
        try:
            found = work()
            said = DONE
        finally:
            ended.set()
            signs.result()
            first_says(ranks, said)
    return found


def gather(ranks: ProcessGroup, value: Tensor, counted: Tensor) -> Tensor:
    """The counted values of all ranks, flat and in rank order, float64.

    Every rank brings a tensor of the same shape. A sum of disjoint slots, so exact; values that
    are not counted travel as NaN.
    """
    slots = torch.zeros(ranks.world * value.numel(), dtype=torch.double, device=value.device)
    mine = slice(ranks.rank * value.numel(), (ranks.rank + 1) * value.numel())
    slots[mine] = value.double().masked_fill(~counted, torch.nan).flatten()
    found = ranks.sum_(slots)
    return found[~found.isnan()]
