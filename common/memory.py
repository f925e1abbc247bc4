"""What fits into this machine's memory, asked before anything is allocated."""

import psutil

from common.errors import InputError

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
