"""What `dtype = "auto"` of [rollout] and [generate] stands for, decided once where a run starts."""

import torch
from rich.console import Console

from common.device import fastest_precision
from deploy.config import RunConfig


def settled_precision(config: RunConfig, target: Console) -> RunConfig:
    """With a precision in the place of `auto`, and said why.

    The machine that the command runs on decides for all, so that weights are published as they are
    sampled; workers of a cluster may be on others.
    """
    updates = {}
    for section in ("rollout", "generate"):
        own = getattr(config, section)
        if own.dtype == "auto":
            device, gpus = own.device or config.rollout.device, own.gpus
            reserves = bool(config.rollout.gpus if gpus is None else gpus)
            name, why = _fastest("cuda" if device == "auto" and reserves else device)
            target.print(f"{section}.dtype=auto is {name}: {why}")
            updates[section] = own.model_copy(update={"dtype": name})
    return config.model_copy(update=updates)


def _fastest(device: str) -> tuple[str, str]:
    here = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and here == "cpu":
        return "float32", "the GPUs are on other machines; set it to bfloat16 where they have it"
    return fastest_precision(torch.device(here if device == "auto" else device))
