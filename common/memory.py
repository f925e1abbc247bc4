"""What fits into this machine's memory, asked before anything is allocated."""

from collections.abc import Callable

import psutil
from torch import nn

from common.errors import InputError
from common.outline import outlines

GB = 2**30


def require_memory(needed: float, what: str, remedy: str) -> None:
    """Refuse a computation that would only end in swapping or in a killed process.

    Raises:
        InputError: `what` takes more bytes than are free; `remedy` is what to lower.
    """
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{what} takes {needed / GB:.1f} GB of memory, but {free / GB:.1f} GB are free; "
            f"{remedy}"
        )


def module_bytes(build: Callable[[], nn.Module]) -> int:
    """What the module's parameters and buffers will take, without making them."""
    with outlines():
        return sum(value.nbytes for value in build().state_dict().values())
