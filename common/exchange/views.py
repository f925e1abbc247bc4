"""Arrays that lie in memory which others share, as tensors of that memory."""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor


def memory_of(array: np.ndarray) -> Any:
    """A contiguous array's bytes as a buffer; they live as long as anything that looks at them.

    Torch has no notion of memory that can't be written, and would warn of each read-only array:
    so this says that they can. Nobody writes to them.
    """
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    memory.owner = array  # pyright: ignore[reportAttributeAccessIssue]  # outlived by no view
    return memory


def view_of(array: np.ndarray) -> Tensor:
    """The array as a tensor, without a copy; nobody writes to it."""
    array = np.ascontiguousarray(array)
    if not array.size:
        return torch.from_numpy(array.copy())
    return torch.from_numpy(np.frombuffer(memory_of(array), array.dtype).reshape(array.shape))
