"""What trainings before distillation share: nothing is lost, and nothing is done twice.

A file says what it was made from. It is made again when that has changed; a training that was
stopped goes on from its snapshot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import InputError
from common.exchange.metrics import MetricsSink
from common.files.made_from import difference
from common.files.snapshots import Snapshots
from common.files.tensors import read_metadata
from deploy.console.progress import Bar
from deploy.console.stopping import Stopped, stop_request
from deploy.run_folder.workspace import Workspace
from deploy.stages.training_log import TrainingLog
from learner.resumable import Course, ResumableTraining, Training


@dataclass(frozen=True)
class Plan:
    """One training of a run folder."""

    name: str
    """teacher, student or tokenizer."""
    path: Path
    """The file that it makes."""
    made_from: dict[str, Any]
    """All that decides its contents; stored in it."""
    steps: int
    checkpoint_every: int
    is_distilled_from: bool
    """Whether the run's distilled student rests on this file."""


def require_finished(facts: dict[str, Any], target: Console) -> None:
    """For commands that have more to do after a training.

    Raises:
        Stopped: it was stopped; its snapshot is there.
    """
    if "cause" in facts:
        target.print(f"stopped by {facts['cause']} after step {facts['steps']}")
        raise Stopped(facts["cause"])


class Tee:
    """One sink for several."""

    def __init__(self, *sinks: MetricsSink) -> None:
        self._sinks = sinks

    def post(self, row: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.post(row)


class Stage:
    """A training with its snapshots and its log."""

    def __init__(self, plan: Plan, workspace: Workspace, target: Console) -> None:
        self._plan = plan
        self._workspace = workspace
        self._target = target
        self._folder = workspace.pretraining / plan.name
        self._snapshots = Snapshots(self._folder, finite=("student", "ema", "tokenizer"))

    def finished(self) -> dict[str, Any] | None:
        """The facts in the file, where it was made from just this; else None."""
        metadata = self._stored()
        if metadata is None or self._changed(metadata) is not None:
            return None
        self._target.print(
            f"{self._plan.name}: {self._plan.path} was made from the same before and stays; "
            "--restart trains it again"
        )
        self._snapshots.clear()
        return metadata["pretrain"]

    def begin(self, *, resume: bool, restart: bool) -> None:
        """Refuse what would be lost: an unfinished training, or what a student rests on.

        Raises:
            InputError: it was not said what to do with it.
        """
        if restart:
            self._snapshots.clear()
            return
        plan, done = self._plan, self._snapshots.newest_step()
        if done is not None and not resume:
            raise InputError(
                f"{self._folder}: the {plan.name}'s training stopped at step {done} of "
                f"{plan.steps}; go on with --resume, or throw it away with --restart"
            )
        metadata = self._stored()
        if metadata is None:
            return
        changed = self._changed(metadata)
        if plan.is_distilled_from and self._workspace.student.exists():
            raise InputError(
                f"{plan.path}: {changed}, and {self._workspace.student} was distilled from it as "
                "it is; choose another --out, or train it again with --restart"
            )
        self._target.print(f"{plan.name}: made anew, for {changed}")

    def run(self, training: Training, shown: Sequence[str] = ("loss",)) -> Course:
        """Train to the end, or until Ctrl-C or SIGTERM; goes on where there is a snapshot."""
        plan = self._plan
        course = ResumableTraining(
            training,
            plan.steps,
            snapshots=self._snapshots,
            every=plan.checkpoint_every,
            made_from=plan.made_from,
        )
        done = course.resume()
        title = f"pretrain {plan.name}"
        log = TrainingLog(self._workspace, title.replace(" ", "_"), done=done)
        try:
            with Bar(self._target, title, plan.steps, shown) as bar, stop_request() as request:
                request.poll_from_here()
                return course.run(Tee(log, bar), lambda: request.name)
        finally:
            log.close()

    def clear(self) -> None:
        """The file is there: its snapshots have done their duty."""
        self._snapshots.clear()

    def _stored(self) -> dict[str, Any] | None:
        if not self._plan.path.exists():
            return None
        try:
            return read_metadata(self._plan.path)
        except InputError as error:
            self._target.print(f"{error}; it is made anew")
            return None

    def _changed(self, metadata: dict[str, Any]) -> str | None:
        if "made_from" not in metadata:
            return "it does not say what it was made from"
        return difference(metadata["made_from"], self._plan.made_from)
