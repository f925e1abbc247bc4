"""A run that begins with what another run's student learned (Distilled Decoding 2)."""

from deploy.config import RunConfig
from deploy.run_folder.borrowing import link
from deploy.run_folder.workspace import Workspace


def second_stage(config: RunConfig, workspace: Workspace, first: Workspace) -> RunConfig:
    """`config` of a run that reads the files of `first` in place and begins with the average of its
    student."""
    workspace.root.mkdir(parents=True, exist_ok=True)
    link(first.root, workspace.root)
    learner = config.learner.model_copy(update={"weights": first.student_ema})
    return config.model_copy(update={"learner": learner})
