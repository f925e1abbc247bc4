"""The loop around the learner: take, step, publish, commit, snapshot; until done or stopped."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from common.errors import Closed, Diverged, InputError, RunFailed, Verdict
from common.exchange.buffer import TrajectorySource
from common.exchange.frontier import NOTHING, Frontier
from common.exchange.metrics import PROFILE, MetricsMailbox
from common.exchange.schedule import Schedule
from common.exchange.trajectory import TrajectoryBatch
from common.exchange.weights import Weights
from learner.checkpoints import Checkpoints
from learner.intake import Intake, Taken
from learner.learner import StudentName
from learner.process_group import ProcessGroup
from learner.profile import Profile
from learner.publisher import Publisher, RewindableWeights
from learner.reported_rows import ReportedRows

VERSIONS = "versions"
"""What a snapshot calls the earlier versions of the student that leases are pinned to."""


class Book(Protocol):
    """The part of the ledger that the learner talks to."""

    def commit(self, step: int, numbers: list[int]) -> None: ...
    def restore(self, state: dict[str, Any], versions: list[int]) -> int: ...
    def describe(self) -> str: ...


class Trained(Protocol):
    """What the loop is around: a `Learner`, or two in turns (learner/alternation.py)."""

    @property
    def steps_done(self) -> int: ...
    @property
    def profile(self) -> Profile: ...
    @property
    def is_spread(self) -> bool: ...
    def step(self, batch: TrajectoryBatch) -> dict[str, float]: ...
    def published(self, dtype: str, *, checked: bool = False) -> Weights: ...
    def states(self) -> Iterator[tuple[StudentName, Mapping[str, Tensor]]]: ...
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
    """One rank's view of a run. Rank 0 publishes, commits, reports and writes snapshots; where the
    student is spread, the others have a part in what is made of it."""

    def __init__(
        self,
        learner: Trained,
        schedule: Schedule,
        *,
        buffer: RewindableBuffer,
        weights: RewindableWeights,
        ledger: Book,
        metrics: MetricsMailbox,
        checkpoints: Checkpoints,
        found: tuple[dict[str, Any], dict[str, Any]] | None = None,
        ranks: ProcessGroup,
        weights_dtype: str | None,
        stall_seconds: float,
        while_waiting: Callable[[], object] | None = None,
        take_over: Callable[[], object] | None = None,
        after_step: Callable[[Trained, dict[str, float]], object] | None = None,
    ) -> None:
        """`found` is the snapshot to go on from. `take_over` is called on rank 0 after the first
        step and before anything of it is stored: until then the run may still be refused.
        `after_step` is called on every rank, and may add to the metrics of the step. Without
        a `weights_dtype` versions are numbers alone, for nobody samples the student."""
        self._learner = learner
        self._schedule = schedule
        self._buffer = buffer
        self._leads = ranks.rank == 0
        sink, beside = weights if self._leads else None, while_waiting is None
        self._publisher = Publisher(sink, schedule, weights_dtype, beside=beside)
        self._ledger = ledger
        self._metrics = ReportedRows(metrics)
        self._checkpoints = checkpoints
        self._found = found
        self._ranks = ranks
        ahead = partial(Intake, buffer, ranks, steps=schedule.steps, while_waiting=while_waiting)
        self._intake = ahead(stall_seconds=stall_seconds, state=self._state)
        self._take_over = take_over
        self._after_step = after_step
        self._trained = Frontier(NOTHING)
        self._recent: deque[tuple[float, int]] = deque(maxlen=20)

    def run(self) -> Outcome:
        """Train until the schedule is done, resuming from the newest snapshot.

        Raises:
            InputError: something of the user's, here or in a worker; the steps before are kept.
            Diverged: a number is not finite; which, at which step, and what is left of the run.
            RunFailed: a service died, or no batch came; the steps before are kept.
        """
        started = time.monotonic()
        self._resume()
        try:
            cause = self._steps()
            self._finish()
        except Diverged as error:
            raise Diverged(f"{error}; {self._checkpoints.describe()}") from error
        except (InputError, RunFailed) as error:
            if self._keep():
                raise
            raise self._with_newest(error) from error
        finally:
            self._intake.close()
            self._publisher.close()
            self._checkpoints.close()
        seconds = time.monotonic() - started
        return Outcome(self._learner.steps_done, self._publisher.count, seconds, cause)

    def _steps(self) -> str | None:
        """All steps, or those until the run was ended: the cause."""
        try:
            while self._learner.steps_done < self._schedule.steps:
                self._step()
            self._publisher.settle()
        except Closed as closed:
            return str(closed)
        return None

    def _resume(self) -> None:
        """All ranks begin with the same snapshot; rank 0 takes the services back to it."""
        state, versions = NOTHING, {}
        if self._found is not None:
            tensors, facts = self._found
            state, versions = facts["ledger"], tensors.pop(VERSIONS, {})
            try:
                self._learner.restore(tensors, state["step"])
            except InputError as error:
                raise InputError(f"{self._checkpoints.folder(state['step'])}: {error}") from None
            self._found = None  # as large as the learner itself
        self._trained = Frontier(state)
        self._checkpoints.begin(state["step"])
        self._ranks.barrier()
        if self._has_a_part:
            earlier = self._publisher.begin(self._learner, versions)
            if self._leads:
                self._buffer.clear(self._ledger.restore(state, earlier))
        self._ranks.barrier()

    def _step(self) -> None:
        asked = time.monotonic()
        taken = self._intake.take(self._learner.steps_done)
        began = time.monotonic()
        metrics = self._learner.step(taken.batch)
        profile = self._learner.profile.take()
        with ExitStack() as finally_:  # the step is done, whoever is left to hear of it
            if self._has_a_part:
                row = {"seconds/wait": began - asked, **taken.numbers}
                self._account(taken, row, partial(self._report, metrics, profile), finally_)
                row["seconds/step"] = time.monotonic() - began
            if self._after_step is not None:
                self._after_step(self._learner, metrics)
        if self._has_a_part:
            self._checkpoints.check()
            if self._checkpoints.is_due(self._learner.steps_done):
                self._snapshot()

    def _account(
        self,
        taken: Taken,
        row: dict[str, Any],
        report: Callable[[dict[str, Any]], object],
        finally_: ExitStack,
    ) -> None:
        """What others hear of a step that is done: `row` last, with what is found out meanwhile."""
        step = self._learner.steps_done
        if self._leads and self._take_over is not None:
            self._take_over()
            self._take_over = None
        self._trained.add(step, taken.leases)
        row |= {"step": step, "pid": os.getpid(), "seconds/step": 0.0}
        row |= {"images_total": step * self._schedule.global_batch_size}
        if self._leads:
            finally_.callback(report, row)
        commit = partial(self._ledger.commit, step, taken.leases) if self._leads else lambda: None
        if self._schedule.is_published(step) or step == self._schedule.steps:
            self._publisher.publish(self._learner, commit)
            return
        try:
            self._publisher.settle()  # its commit comes first
        finally:
            commit()

    @property
    def _has_a_part(self) -> bool:
        return self._leads or self._learner.is_spread

    def _report(
        self,
        metrics: Mapping[str, float],
        profile: dict[str, Any] | None,
        row: dict[str, Any],
    ) -> None:
        row = {**metrics, **row, "time": time.time(), "version": self._publisher.version}
        row |= {"images_per_second": self._pace(row["time"], row["images_total"])}
        with suppress(RunFailed):  # a run goes on without its curves, and ends with others' causes
            row |= self._buffer.gauges()
        self._metrics.post(row)
        if profile is not None:
            self._metrics.post({"step": row["step"], "time": row["time"], PROFILE: profile})

    def _pace(self, now: float, images: int) -> float:
        """Images per second over the last steps; 0 in the first one."""
        self._recent.append((now, images))
        (first, before), (last, after) = self._recent[0], self._recent[-1]
        return (after - before) / (last - first) if last > first else 0.0

    def _state(self) -> str:
        """Who holds what, for the message of a stall."""
        return f"{self._ledger.describe()}; buffer {self._buffer.gauges()}"

    def _keep(self) -> bool:
        """A snapshot on the way out, of steps that are the run's: the first one may be refused.
        Where it takes all ranks, who may be anywhere when one of them fails, only if all come;
        whether nothing was lost."""
        step = self._learner.steps_done
        if self._trained.step != step:
            return True
        if self._learner.is_spread and not self._ranks.all_say(step):
            return not self._checkpoints.is_missing(step)
        self._finish()
        return True

    def _with_newest(self, error: InputError | RunFailed) -> Exception:
        """The same with what is left of the run."""
        said = (
            f"{error}; not all learner ranks answered, so step {self._learner.steps_done} could "
            f"not be stored: {self._checkpoints.describe()}"
        )
        return Verdict(type(error), said).error()

    def _finish(self) -> None:
        """All steps that were done are in a snapshot when this returns."""
        if self._has_a_part:
            if self._checkpoints.is_missing(self._learner.steps_done):
                self._snapshot()
            self._checkpoints.settle()

    def _snapshot(self) -> None:
        step = self._learner.steps_done
        versions = {VERSIONS: self._publisher.kept(step)}  # nobody changes these
        facts: dict[str, Any] = {"ledger": self._trained.state()}
        if self._leads:
            facts["rows"] = self._metrics.pending()
        self._checkpoints.save(step, self._learner.snapshot(), versions, facts)
