"""Where tensors live and how precise they are, from a config's words."""

from contextlib import AbstractContextManager, nullcontext

import torch

from common.errors import InputError


def place(name: str) -> torch.device:
    """`auto` prefers CUDA where there is one.

    Raises:
        InputError: CUDA was asked for and is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch sees no CUDA device; set device=auto or cpu")
    return torch.device(name)


def precision(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products in `dtype`; float32 switches an outer autocast off.

    The meta device, where nothing is computed, has no autocast.
    """
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
