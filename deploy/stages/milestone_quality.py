"""What `varkd evaluate` would say of students from the middle of a run, where these are kept by it
(`learner.keep_best_by`)."""

from pathlib import Path

from rich.console import Console

from common.errors import InputError
from common.models.backbone import BackboneConfig
from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.draw import load_for_sampling
from deploy.stages.judge import Judge
from deploy.stages.quality import feature_facts, likelihood

TRAINED = "divergence"
"""What training sees itself; everything else is measured."""


def require_judge(config: RunConfig, workspace: Workspace, target: Console) -> None:
    """Have ready what a learner will compare by, where it is to; its classifier is trained now.

    Raises:
        InputError: there are too few images for a FID, or more than fit into memory; or nobody
            measures what students are to be kept by.
    """
    kept_by = config.learner.keep_best_by
    if kept_by == TRAINED:
        return
    Judge(config, workspace)
    if kept_by == "fid":
        feature_facts(config, workspace, target)
        return
    student = config.models.student
    if not isinstance(student, BackboneConfig) or not config.evaluate.likelihood_samples:
        raise InputError(
            f"learner.keep_best_by is {kept_by}, but models.student.kind is {student.kind} and "
            f"evaluate.likelihood_samples is {config.evaluate.likelihood_samples}, and only of "
            "students that decode token by token, with some samples, is that measured; set it to "
            "fid or divergence"
        )


class MilestoneQuality:
    """As `varkd evaluate` measures a student: by [evaluate], with the same labels and noise for
    every one. The real images are read with the first; the teacher is read for each, for between
    two of them it would only take room."""

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        self._config = config
        self._workspace = workspace
        self._judge: Judge | None = None

    def of(self, path: Path) -> dict[str, float]:
        """Of a student's file: its FID where students are kept by that, and its likelihoods where
        they are measured, by the names that `varkd evaluate` gives them; nothing where students
        are kept by what training saw.

        Raises:
            InputError: its numbers are not finite, or a file is missing.
        """
        settings, kept_by = self._config.evaluate, self._config.learner.keep_best_by
        if kept_by == TRAINED:
            return {}
        judge = self._ready()
        file = self._workspace.made_student(self._config, path)
        model, tokenizer = load_for_sampling(file, self._workspace, settings.device)
        found: dict[str, float] = {}
        if kept_by == "fid":
            pixels = judge.draw(model, tokenizer, settings.sampling)
            found["fid"] = judge.compare(pixels)["fid"]
        return found | likelihood(self._config, self._workspace, model, judge, is_teacher=False)

    def _ready(self) -> Judge:
        if self._judge is None:
            judge = Judge(self._config, self._workspace)
            if self._config.learner.keep_best_by == "fid":
                judge.read(Console(quiet=True))
            self._judge = judge
        return self._judge
