"""The loop around a training in one process that may be stopped and goes on to the same numbers."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from common.errors import Diverged, InputError
from common.exchange.metrics import MetricsSink
from common.files.made_from import difference
from common.files.snapshots import Snapshots
from learner.restoring import fitting

AVERAGED = 50
"""The loss of a training is the mean of so many last steps."""


class Training(Protocol):
    """Something that is trained step by step; what it is restored to is all that it depends on."""

    @property
    def steps_done(self) -> int: ...
    def step(self) -> Mapping[str, float]: ...
    def snapshot(self) -> dict[str, Any]: ...
    def restore(self, tensors: dict[str, Any], step: int) -> None: ...


@dataclass
class Course:
    """How a training went so far, over all processes that had a part in it."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    cause: str | None = None
    """Why it was stopped; None where it ran to its end."""

    def facts(self) -> dict[str, Any]:
        """{"steps", "loss", "seconds"}, and "cause" where it was stopped."""
        loss = sum(self.losses) / len(self.losses)
        facts = {"steps": self.steps, "loss": loss, "seconds": self.seconds}
        return facts if self.cause is None else facts | {"cause": self.cause}


class ResumableTraining:
    """Snapshots of `training` in `snapshots`, every `every` steps (0: only where it is stopped).

    `made_from` is what its numbers depend on: a snapshot of anything else is refused.
    """

    def __init__(
        self,
        training: Training,
        steps: int,
        *,
        snapshots: Snapshots,
        every: int,
        made_from: dict[str, Any],
    ) -> None:
        self._training = training
        self._steps = steps
        self._snapshots = snapshots
        self._every = every
        self._made_from = made_from
        self._course = Course()

    def resume(self) -> int:
        """Go back to the newest snapshot; returns its step, 0 where there is none.

        Raises:
            InputError: it was made from something else; the message says what differs.
        """
        found = self._newest()
        if found is None:
            return 0
        tensors, facts = found
        folder = self._snapshots.folder(self._snapshots.newest_step() or 0)
        try:
            return self._restore(tensors, facts)
        except InputError as error:
            raise InputError(f"{folder}: {error}") from None

    def _restore(self, tensors: dict[str, Any], facts: dict[str, Any]) -> int:
        with fitting():
            course = Course(**facts["course"])
            before = facts["made_from"]
        changed = difference(before, self._made_from)
        if changed is not None:
            raise InputError(
                f"the unfinished training cannot go on: {changed}; change that back, or begin "
                "again with --restart"
            )
        self._training.restore(tensors, course.steps)
        self._course = course
        return self._course.steps

    def _newest(self) -> tuple[dict[str, Any], dict[str, Any]] | None:
        try:
            return self._snapshots.latest()
        except InputError as error:
            *others, newest = self._snapshots.steps()
            remedy = "begin again with --restart"
            if others:
                folder = self._snapshots.folder(newest)
                remedy = f"remove {folder}, and --resume goes on from step {others[-1]}"
            raise InputError(f"{error}; {remedy}") from None

    def run(self, metrics: MetricsSink, stopped: Callable[[], str | None]) -> Course:
        """Train to the end, or until `stopped` gives a cause: then the last step is kept.

        Raises:
            Diverged: a number is not finite; the message says what is left.
        """
        try:
            while self._course.steps < self._steps and self._course.cause is None:
                self._step(metrics, stopped)
        except Diverged as error:
            raise Diverged(f"{error}; {self._snapshots.describe()}") from error
        return self._course

    def _step(self, metrics: MetricsSink, stopped: Callable[[], str | None]) -> None:
        course, started = self._course, time.monotonic()
        row = self._training.step()
        course.steps = self._training.steps_done
        course.losses = [*course.losses[1 - AVERAGED :], row["loss"]]
        metrics.post({"step": course.steps, "time": time.time(), **row})
        course.seconds += time.monotonic() - started
        cause = stopped()  # at the last step as well: a command may have more to do after it
        if course.steps == self._steps and cause is None:
            return
        if cause is not None or (self._every and course.steps % self._every == 0):
            facts = {"made_from": self._made_from, "course": asdict(course)}
            self._snapshots.save(course.steps, self._training.snapshot(), facts)
        course.cause = cause
