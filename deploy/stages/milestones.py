"""Students that stay from the middle of a run, and which of them are the best.

Unless `learner.keep_best_by` is fid, no image is drawn while a run trains, and "best" is the
divergence from the teacher that training itself saw since the milestone before:
`divergence/student`, on the student's own samples, else on data, else the loss; it begins anew
where a run goes on from a snapshot.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from common.errors import InputError
from common.files.tensors import load_tensors, read_metadata
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.milestone_fid import MilestoneFid
from deploy.stages.student_files import store_student
from learner.learner import StudentName
from learner.process_group import ProcessGroup, led
from learner.train import Trained

MEASURES = ("divergence/student", "divergence/data", "loss")
FID = "fid"


class Milestones:
    """Called after every step by every rank: the students of every `learner.export_every` steps and
    of the last one, of which the `learner.keep_best` best ones stay, or all. Rank 0 stores them;
    while it compares them with real images, the others wait."""

    def __init__(
        self,
        config: RunConfig,
        workspace: Workspace,
        ranks: ProcessGroup,
        fid: Callable[[Path], float] | None = None,
    ) -> None:
        """`fid` is that of a student's file; by default as `varkd evaluate` measures it."""
        self._config = config
        self._workspace = workspace
        self._ranks = ranks
        self._seen: defaultdict[str, list[float]] = defaultdict(list)
        self._fid = fid or MilestoneFid(config, workspace).of

    def __call__(self, learner: Trained, metrics: Mapping[str, float]) -> None:
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
        by_fid = self._config.learner.keep_best_by == FID
        said = {} if by_fid else {"measure": measure, "mean": mean}
        stored: list[StudentName] = []
        if self._ranks.rank == 0 or learner.is_spread:
            for student, state in learner.states():
                self._store(student, state, step, **said)
                stored.append(student)
        if by_fid:
            led(self._ranks, partial(self._compare, stored, step))
        for student in stored:
            self._prune(student, by_fid=by_fid)

    def _store(
        self, student: StudentName, state: Mapping[str, Tensor], step: int, **said: Any
    ) -> None:
        path = self._workspace.milestone(student, step)
        store_student(self._config, self._workspace, path, state, step, **said)

    def _compare(self, students: list[StudentName], step: int) -> None:
        """Let the files say how near to real images their students are."""
        for student in students:
            path = self._workspace.milestone(student, step)
            self._store(student, load_tensors(path)[0], step, measure=FID, mean=self._fid(path))

    def _prune(self, student: StudentName, *, by_fid: bool) -> None:
        if kept := self._config.learner.keep_best:
            files = self._workspace.milestones.glob(f"{student}-*.safetensors")
            _prune(sorted(files), kept, by_fid)


def _prune(paths: list[Path], kept: int, by_fid: bool) -> None:
    """Of those in the order of their steps that say how good they are by this measure; of two alike
    the later."""
    means = {path: mean for path in reversed(paths) if (mean := _mean(path, by_fid)) is not None}
    for path in sorted(means, key=lambda path: means[path])[kept:]:
        path.unlink(missing_ok=True)


def _mean(path: Path, by_fid: bool) -> float | None:
    try:
        facts = read_metadata(path)
    except InputError:
        return None
    found = facts.get("mean")
    if (facts.get("measure") == FID) != by_fid:
        return None
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else None
