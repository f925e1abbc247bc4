"""What the fork server holds before it forks: importing it is what takes seconds."""

import gc
import importlib
import pkgutil

import matplotlib as mpl
from PIL import Image

from rollout.evaluation.torchvision_compat import ensure_torchvision

ensure_torchvision()
Image.init()
mpl.use("agg")
for _name in (
    "torch_fidelity",
    "torch.utils.tensorboard",
    "torch.fx.experimental.symbolic_shapes",
    "sklearn.cluster",
    "sklearn.datasets",
    "matplotlib.pyplot",
    "pyarrow.dataset",
    "rich._emoji_codes",
    "rich.progress",
):
    importlib.import_module(_name)
for _room in ("common", "rollout", "teacher_server", "learner", "deploy"):
    for _file in pkgutil.walk_packages(importlib.import_module(_room).__path__, f"{_room}."):
        if _file.name.startswith("deploy.backend"):  # Ray: not to be forked
            continue
        try:
            importlib.import_module(_file.name)
        except ModuleNotFoundError as error:
            if error.name != "triton":  # of a GPU's kernels
                raise
gc.collect()
gc.freeze()  # what commands share with one another, they need not look through
