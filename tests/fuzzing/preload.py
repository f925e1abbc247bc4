"""What the fork server holds before it forks: importing it is what takes seconds."""

import importlib

from rollout.torchvision_compat import ensure_torchvision

ensure_torchvision()
for _name in (
    "torch_fidelity",
    "torch.utils.tensorboard",
    "sklearn.cluster",
    "matplotlib.pyplot",
    "rich.progress",
    "deploy.main",
    "deploy.distill",
    "deploy.report",
    "deploy.export",
    "deploy.generating",
    "deploy.tokenizing",
    "deploy.study.runner",
    "deploy.study.publish",
):
    importlib.import_module(_name)
