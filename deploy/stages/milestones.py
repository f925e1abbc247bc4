"""Students that stay from the middle of a run, and which of them are the best.

Unless `learner.keep_best_by` is fid, no image is drawn while a run trains, and "best" is the
divergence from the teacher that training itself saw since the milestone before:
`divergence/student`, on the student's own samples, else on data, else the loss; it begins anew
where a run goes on from a snapshot.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from torch import Tensor

from common.errors import InputError
from common.files.tensors import read_metadata
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.milestone_fid import MilestoneFid
from deploy.stages.student_files import store_student
from learner.learner import StudentName
from learner.train import Trained

MEASURES = ("divergence/student", "divergence/data", "loss")
FID = "fid"


class Milestones:
    """Called after every step by whoever has a part in what is seen of the student: the students of
    every `learner.export_every` steps and of the last one, of which the `learner.keep_best` best
    ones stay, or all."""

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        self._config = config
        self._workspace = workspace
        self._seen: defaultdict[str, list[float]] = defaultdict(list)
        self._fid = MilestoneFid(config, workspace)

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
        for student, state in learner.states():
            self._store(student, state, step, measure, mean)

    def _store(
        self,
        student: StudentName,
        state: Mapping[str, Tensor],
        step: int,
        measure: str | None,
        mean: float | None,
    ) -> None:
        config, workspace = self._config, self._workspace
        path, by_fid = workspace.milestone(student, step), config.learner.keep_best_by == FID
        if by_fid:
            store_student(config, workspace, path, state, step)
            measure, mean = FID, self._fid.of(path)
        store_student(config, workspace, path, state, step, measure=measure, mean=mean)
        if kept := config.learner.keep_best:
            _prune(sorted(path.parent.glob(f"{student}-*.safetensors")), kept, by_fid)


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
