"""Students that stay from the middle of a run, and which of them are the best.

Unless `learner.keep_best_by` is what is measured, nothing is drawn while a run trains, and "best"
is the divergence from the teacher that training itself saw since the milestone before:
`divergence/student`, on the student's own samples, else on data, else the loss; it begins anew
where a run goes on from a snapshot.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, MutableMapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files.tensors import load_tensors, read_metadata
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.milestone_quality import TRAINED, MilestoneQuality
from deploy.stages.student_files import store_student
from learner.learner import StudentName
from learner.process_group import ProcessGroup, led
from learner.train import Trained

MEASURES = ("divergence/student", "divergence/data", "loss")
SHOWN: dict[StudentName, str] = {"student": "milestone", "student_ema": "milestone_ema"}
"""Before the names of what was measured, in a step's row."""


class Milestones:
    """Called after every step by every rank: the students of every `learner.export_every` steps and
    of the last one, of which the `learner.keep_best` best ones stay, or all. Rank 0 stores them;
    while it measures them, the others wait."""

    def __init__(
        self,
        config: RunConfig,
        workspace: Workspace,
        ranks: ProcessGroup,
        measured: Callable[[Path], dict[str, float]] | None = None,
    ) -> None:
        """`measured` is what there is to say of a student's file; by default as `varkd evaluate`
        says it."""
        self._config = config
        self._workspace = workspace
        self._ranks = ranks
        self._seen: defaultdict[str, list[float]] = defaultdict(list)
        self._measured = measured or MilestoneQuality(config, workspace).of

    def __call__(self, learner: Trained, metrics: MutableMapping[str, float]) -> None:
        """`metrics` are those of the step; what is measured of its student is added on rank 0."""
        every, step = self._config.learner.export_every, learner.steps_done
        if not every:
            return
        for name in MEASURES:
            if name in metrics:
                self._seen[name].append(metrics[name])
        if step % every and step != self._config.learner.steps:
            return
        measure = next((name for name in MEASURES if name in self._seen), None)
        mean = fmean(self._seen[measure]) if measure else None
        self._seen.clear()
        is_measured = self._config.learner.keep_best_by != TRAINED
        said = {} if is_measured else {"measure": measure, "mean": mean}
        stored: list[StudentName] = []
        if self._ranks.rank == 0 or learner.is_spread:
            for student, state in learner.states():
                self._store(student, state, step, **said)
                stored.append(student)
        if is_measured:
            metrics.update(led(self._ranks, partial(self._compare, stored, step)) or {})
        for student in stored:
            self._prune(student)

    def _store(
        self, student: StudentName, state: Mapping[str, Tensor], step: int, **said: Any
    ) -> None:
        path = self._workspace.milestone(student, step)
        store_student(self._config, self._workspace, path, state, step, **said)

    def _compare(self, students: list[StudentName], step: int) -> dict[str, float]:
        """Let the files say how good their students are; the numbers as a row has them."""
        kept_by, row = self._config.learner.keep_best_by, dict[str, float]()
        for student in students:
            path = self._workspace.milestone(student, step)
            found = self._measured(path)
            said = {"measure": kept_by, "mean": found[kept_by], "metrics": found}
            self._store(student, load_tensors(path)[0], step, **said)
            row |= {f"{SHOWN[student]}/{name}": value for name, value in found.items()}
        return row

    def _prune(self, student: StudentName) -> None:
        if kept := self._config.learner.keep_best:
            files = self._workspace.milestones.glob(f"{student}-*.safetensors")
            _prune(sorted(files), kept, self._config.learner.keep_best_by)


def _prune(paths: list[Path], kept: int, kept_by: str) -> None:
    """Of those in the order of their steps that say how good they are by this measure; of two alike
    the later."""
    means = {path: mean for path in reversed(paths) if (mean := _mean(path, kept_by)) is not None}
    for path in sorted(means, key=lambda path: means[path])[kept:]:
        path.unlink(missing_ok=True)


def _mean(path: Path, kept_by: str) -> float | None:
    try:
        facts = read_metadata(path)
    except InputError:
        return None
    found, measure = facts.get("mean"), facts.get("measure")
    if measure != kept_by and (kept_by != TRAINED or measure not in MEASURES):
        return None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None
