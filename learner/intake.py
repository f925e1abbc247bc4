"""A rank's batches, step by step: while the learner works on one, the next is fetched and decoded.

Where whoever waits does the work himself (one process, `while_waiting`), everything happens when
it is asked for.
"""

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from threading import Event

import torch

from common.errors import RunFailed
from common.exchange.buffer import Share, TrajectorySource
from common.exchange.trajectory import GUESSES, KEPT, TrajectoryBatch, concatenate, from_arrow
from learner.process_group import ProcessGroup

TAKE_SECONDS = 0.5
BUSY = "busy."
"""Metadata of a record: how busy a scorer other than the teacher was, by its name."""


@dataclass(frozen=True, slots=True)
class Taken:
    """This rank's batch of a step, and the leases of the whole step."""

    batch: TrajectoryBatch
    leases: list[int]
    numbers: dict[str, float]
    """To plot: seconds that its records took, and how loaded the scorers were with them."""

    @classmethod
    def of(cls, share: Share) -> "Taken":
        """Decoded and joined.

        Raises:
            InputError: a record is damaged.
        """
        batches = [from_arrow(record) for record in share.records]
        numbers = {
            f"seconds/{role}": sum(
                float(batch.facts.get(f"{role}_seconds", 0)) for batch in batches
            )
            for role in ("rollout", "teacher")
        }
        for name in ("busy", "waiting"):
            found = [float(batch.facts.get(f"teacher_{name}", 0)) for batch in batches]
            numbers[f"teacher/{name}"] = sum(found) / len(found)
        for key in (key for key in batches[0].facts if key.startswith(BUSY)):
            found = [float(batch.facts.get(key, 0)) for batch in batches]
            numbers[f"busy/{key.removeprefix(BUSY)}"] = sum(found) / len(found)
        numbers |= _lease_seconds(batches) | _late_leases(batches) | _draft_acceptance(batches)
        return cls(concatenate(batches), share.leases, numbers)

    def beside_a_gpu(self) -> "Taken":
        """Pinned where this process computes on a GPU, for what it is worth where another thread
        than the learner's does it."""
        return replace(self, batch=self.batch.pinned()) if torch.cuda.is_initialized() else self


class Intake:
    """Batches of one rank, to be asked for in the order of the steps, from one thread.

    What is fetched early belongs to its step as what is fetched late: the buffer goes by the step's
    number. It is not committed before it was trained, so that nothing is lost with it.
    """

    def __init__(
        self,
        buffer: TrajectorySource,
        ranks: ProcessGroup,
        *,
        steps: int,
        stall_seconds: float,
        state: Callable[[], str],
        while_waiting: Callable[[], object] | None = None,
    ) -> None:
        """`steps` are all of the run; `state` says who holds what, where nothing comes."""
        self._buffer = buffer
        self._ranks = ranks
        self._steps = steps
        self._stall_seconds = stall_seconds
        self._state = state
        self._while_waiting = while_waiting
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="intake")
        self._coming: Future[Taken | None] | None = None
        self._ended = Event()

    def take(self, step: int) -> Taken:
        """The batch of `step` (0-based); the next one is on its way when this returns.

        Raises:
            Closed, InputError: the run was ended.
            RunFailed: nothing came for `stall_seconds`; the message says who holds what.
        """
        if self._while_waiting is not None:
            return self._made_here(step, self._while_waiting)
        with ExitStack() as unless_taken:
            unless_taken.callback(self.close)
            taken = self._awaited(self._coming or self._pool.submit(self._fetched, step), step)
            unless_taken.pop_all()
        is_last = step + 1 >= self._steps
        self._coming = None if is_last else self._pool.submit(self._fetched, step + 1)
        return taken

    def close(self) -> None:
        """Fetch nothing any more."""
        self._ended.set()
        self._pool.shutdown()

    def _awaited(self, coming: "Future[Taken | None]", step: int) -> Taken:
        waiting_since = time.monotonic()
        while not wait([coming], min(TAKE_SECONDS, self._stall_seconds)).done:
            self._require_progress(step, waiting_since)
        taken = coming.result()
        assert taken is not None, "only `close` ends it without a batch"
        return taken

    def _fetched(self, step: int) -> Taken | None:
        while not self._ended.is_set():
            share = self._share(step, TAKE_SECONDS)
            if share is not None:
                return Taken.of(share).beside_a_gpu()
        return None

    def _made_here(self, step: int, work: Callable[[], object]) -> Taken:
        # With somebody to do the work in this process, waiting on the buffer would be idle time.
        waiting_since = time.monotonic()
        while (share := self._share(step, 0.0)) is None:
            work()
            self._require_progress(step, waiting_since)
        return Taken.of(share)

    def _share(self, step: int, timeout: float) -> Share | None:
        rank, world = self._ranks.rank, self._ranks.world
        return self._buffer.take(step, shard=rank, shards=world, timeout=timeout)

    def _require_progress(self, step: int, waiting_since: float) -> None:
        if time.monotonic() - waiting_since > self._stall_seconds:
            raise RunFailed(
                f"no batch for step {step} in {self._stall_seconds:g} s (learner.stall_seconds): "
                f"{self._state()}; go on from the newest snapshot with --resume"
            )


def _lease_seconds(batches: list[TrajectoryBatch]) -> dict[str, float]:
    """What a lease took every worker that sampled any."""
    found: dict[str, list[float]] = {}
    for batch in batches:
        if (worker := batch.facts.get("worker")) and "rollout_seconds" in batch.facts:
            found.setdefault(worker, []).append(float(batch.facts["rollout_seconds"]))
    return {f"lease_seconds/{worker}": sum(each) / len(each) for worker, each in found.items()}


def _late_leases(batches: list[TrajectoryBatch]) -> dict[str, float]:
    """How many of every worker another one sampled, because all waited for them."""
    late = Counter(batch.facts["late"] for batch in batches if "late" in batch.facts)
    return {f"late_leases/{worker}": float(count) for worker, count in late.items()}


def _draft_acceptance(batches: list[TrajectoryBatch]) -> dict[str, float]:
    """The share of tokens guessed ahead that were kept, by how rows were sampled."""
    sums: Counter[str] = Counter()
    for batch in batches:
        for key, count in batch.facts.items():
            if key.startswith((GUESSES, KEPT)):
                sums[key] += int(count)
    ways = [key.removeprefix(GUESSES) for key in sums if key.startswith(GUESSES)]
    return {
        f"draft_acceptance/{way}": sums[KEPT + way] / guesses
        for way in ways
        if (guesses := sums[GUESSES + way])
    }
