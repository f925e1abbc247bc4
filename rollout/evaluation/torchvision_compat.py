"""Let torchvision import on a torch build that its compiled operators do not fit.

The published torchvision wheel is a CUDA build. On CPU torch its extension does not load, and
`import torchvision` (hence torch-fidelity) dies on `operator torchvision::nms does not exist`.
Declaring the two operators' schemas is enough: transforms and models are pure Python; calling
`nms` itself would still raise (docs/running.md, "Inception features").
Called by rollout/evaluation/metrics.py only.
"""

import importlib
import sys

import torch

from common.without_compiler import without_compiler

_LIBRARY: list[torch.library.Library] = []
_OPERATORS = ("nms", "qnms")


@without_compiler()
def ensure_torchvision() -> None:
    """Make `import torchvision` work in this process; does nothing where it works already."""
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    else:
        return
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    _LIBRARY.append(library)  # the definitions live as long as this object
    for name in _OPERATORS:
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision")
