"""What the fork server holds before it forks: importing it is what takes seconds."""

import importlib

from rollout.evaluation.torchvision_compat import ensure_torchvision

ensure_torchvision()
for _name in (
    "torch_fidelity",
    "torch.utils.tensorboard",
    "sklearn.cluster",
    "matplotlib.pyplot",
    "rich.progress",
    "deploy.main",
    "deploy.stages.distill",
    "deploy.report.summary",
    "deploy.stages.export",
    "deploy.stages.generate",
    "deploy.stages.tokenize",
    "deploy.study.runner",
    "deploy.study.page.publish",
):
    importlib.import_module(_name)
