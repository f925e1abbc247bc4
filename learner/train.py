"""The loop around the learner: take, step, publish, commit, snapshot; until done or stopped."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, Protocol

from torch import Tensor

from common.errors import Closed, Diverged, InputError, RunFailed, ServiceDied
from common.exchange.buffer import TrajectorySource
from common.exchange.metrics import PROFILE, MetricsSink
from common.exchange.schedule import Schedule
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Weights
from common.files.snapshots import Snapshots
from learner.intake import Intake
from learner.process_group import ProcessGroup
from learner.profile import Profile
from learner.publisher import Publisher, RewindableWeights

VERSIONS = "versions"
"""What a snapshot calls the earlier versions of the student that leases are pinned to."""


class Book(Protocol):
    """The part of the ledger that the learner talks to."""

    def commit(self, step: int, numbers: list[int]) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any], versions: list[int]) -> int: ...
    def describe(self) -> str: ...


class Trained(Protocol):
    """What the loop is around: a `Learner`, or two in turns (learner/alternation.py)."""

    @property
    def steps_done(self) -> int: ...
    @property
    def profile(self) -> Profile: ...
    def step(self, batch: TrajectoryBatch) -> dict[str, float]: ...
    def published(self, dtype: str) -> Weights: ...
    def states(self) -> dict[Literal["student", "student_ema"], dict[str, Tensor]]: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, tensors: dict[str, Any], step: int) -> None: ...


class RewindableBuffer(TrajectorySource, Protocol):
    def clear(self, generation: int) -> None: ...
    def gauges(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run of `train` ended; `cause` is None when all steps were done."""

    steps: int
    published: int
    seconds: float
    cause: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Trainer:
    """One rank's view of a run. Rank 0 publishes, commits, reports and writes snapshots."""

    def __init__(
        self,
        learner: Trained,
        schedule: Schedule,
        *,
        buffer: RewindableBuffer,
        weights: RewindableWeights,
        ledger: Book,
        metrics: MetricsSink,
        snapshots: Snapshots,
        found: tuple[dict[str, Any], dict[str, Any]] | None = None,
        ranks: ProcessGroup,
        weights_dtype: str | None,
        checkpoint_every: int,
        stall_seconds: float,
        while_waiting: Callable[[], object] | None = None,
        take_over: Callable[[], object] | None = None,
        after_step: Callable[[Trained], object] | None = None,
    ) -> None:
        """`found` is the snapshot to go on from. `take_over` is called by rank 0 after the first
        step and before anything of it is stored: until then the run may still be refused. Without
        a `weights_dtype` versions are numbers alone, for nobody samples the student."""
        self._learner = learner
        self._schedule = schedule
        self._buffer = buffer
        self._publisher = Publisher(weights, schedule, weights_dtype)
        self._ledger = ledger
        self._metrics = metrics
        self._snapshots = snapshots
        self._found = found
        self._ranks = ranks
        self._snapshot_every = checkpoint_every
        ahead = partial(Intake, buffer, ranks, steps=schedule.steps, while_waiting=while_waiting)
        self._intake = ahead(stall_seconds=stall_seconds, state=self._state)
        self._take_over = take_over
        self._after_step = after_step
        self._kept = 0  # the step of the newest snapshot

    def run(self) -> Outcome:
        """Train until the schedule is done, resuming from the newest snapshot.

        Raises:
            InputError: something of the user's, here or in a worker; the steps before are kept.
            Diverged: a number is not finite; which, at which step, and what is left of the run.
            RunFailed: a service died, or no batch came; the steps before are kept.
        """
        started = time.monotonic()
        self._resume()
        cause = None
        try:
            while self._learner.steps_done < self._schedule.steps:
                self._step()
        except Closed as closed:
            cause = str(closed)
        except Diverged as error:
            raise Diverged(f"{error}; {self._snapshots.describe()}") from error
        except (InputError, RunFailed):
            self._keep()
            raise
        finally:
            self._intake.close()
        self._snapshot(force=True)
        seconds = time.monotonic() - started
        return Outcome(self._learner.steps_done, self._publisher.count, seconds, cause)

    def _resume(self) -> None:
        """All ranks begin with the same snapshot; rank 0 takes the services back to it."""
        state, versions = {"step": 0, "frontier": 0, "beyond": []}, {}
        if self._found is not None:
            tensors, facts = self._found
            state, versions = facts["ledger"], tensors.pop(VERSIONS, {})
            try:
                self._learner.restore(tensors, state["step"])
            except InputError as error:
                raise InputError(f"{self._snapshots.folder(state['step'])}: {error}") from None
            self._found = None  # as large as the learner itself
        self._kept = state["step"]
        self._ranks.barrier()
        if self._ranks.rank == 0:
            earlier = self._publisher.begin(self._learner, versions)
            self._buffer.clear(self._ledger.restore(state, earlier))
        self._ranks.barrier()

    def _step(self) -> None:
        asked = time.monotonic()
        taken = self._intake.take(self._learner.steps_done)
        began = time.monotonic()
        metrics = self._learner.step(taken.batch)
        profile = self._learner.profile.take()
        if self._ranks.rank != 0:
            return
        step = self._learner.steps_done
        if self._take_over is not None:
            self._take_over()
            self._take_over = None
        try:
            if self._schedule.is_published(step) or step == self._schedule.steps:
                self._publisher.publish(self._learner)
        finally:  # the step is done, whether or not anybody is left to hear of it
            self._ledger.commit(step, taken.leases)
        done = time.monotonic()
        row = {"step": step, "time": time.time(), "pid": os.getpid()}
        row |= {"version": self._publisher.version}
        row |= {"images_total": step * self._schedule.global_batch_size}
        row |= {**metrics, **self._buffer.gauges()}
        row |= {"seconds/wait": began - asked, "seconds/step": done - began, **taken.numbers}
        self._post(row)
        if self._after_step is not None:
            self._after_step(self._learner)
        if profile is not None:
            self._post({"step": step, "time": row["time"], PROFILE: profile})
        self._snapshot()

    def _post(self, row: dict[str, Any]) -> None:
        with suppress(ServiceDied):  # a run goes on without its curves
            self._metrics.post(row)

    def _state(self) -> str:
        """Who holds what, for the message of a stall."""
        return f"{self._ledger.describe()}; buffer {self._buffer.gauges()}"

    def _keep(self) -> None:
        """A snapshot on the way out, where the ledger still lives and counts the same steps."""
        with suppress(RunFailed):
            if self._ledger.state()["step"] == self._learner.steps_done:
                self._snapshot(force=True)

    def _snapshot(self, *, force: bool = False) -> None:
        step = self._learner.steps_done
        if self._ranks.rank != 0 or step == self._kept:
            return
        if force or (self._snapshot_every and step % self._snapshot_every == 0):
            tensors = self._learner.snapshot() | {VERSIONS: self._publisher.kept(step)}
            self._snapshots.save(step, tensors, {"ledger": self._ledger.state()})
            self._kept = step
