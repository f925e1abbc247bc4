"""FID of students from the middle of a run, where `learner.keep_best_by` asks for it."""

from pathlib import Path

from rich.console import Console

from deploy.config import RunConfig
from deploy.run_folder.workspace import Workspace
from deploy.stages.draw import load_for_sampling
from deploy.stages.judge import Judge
from deploy.stages.quality import feature_facts


def require_judge(config: RunConfig, workspace: Workspace, target: Console) -> None:
    """Have ready what a learner will compare by, where it is to; its classifier is trained now.

    Raises:
        InputError: there are too few images for a FID, or more than fit into memory.
    """
    if config.learner.keep_best_by == "fid":
        Judge(config, workspace)
        feature_facts(config, workspace, target)


class MilestoneFid:
    """As `varkd evaluate` measures a student: by [evaluate], with the same labels and noise for
    every one. The real images are read with the first."""

    def __init__(self, config: RunConfig, workspace: Workspace) -> None:
        self._config = config
        self._workspace = workspace
        self._judge: Judge | None = None

    def of(self, path: Path) -> float:
        """Of a student's file.

        Raises:
            InputError: its numbers are not finite, or a file is missing.
        """
        settings = self._config.evaluate
        if self._judge is None:
            judge = Judge(self._config, self._workspace)
            judge.read(Console(quiet=True))
            self._judge = judge
        file = self._workspace.made_student(self._config, path)
        model, tokenizer = load_for_sampling(file, self._workspace, settings.device)
        return self._judge.compare(self._judge.draw(model, tokenizer, settings.sampling))["fid"]
