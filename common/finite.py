"""Numbers must stay finite while something is trained; a run ends by naming the one that is not.

Nothing that is NaN or infinite is published, stored or plotted.
"""

import ctypes
import math
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from common.errors import Diverged
from common.native.library import native

WITH_EXTREMES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What torch finds extremes of; others (float8) only hold numbers."""
EXPONENTS = {torch.float16: 0x7C00, torch.bfloat16: 0x7F80, torch.float32: 0x7F800000}
"""The bits that are all set in NaN and infinities, and in nothing else."""
NAMES = ("loss", "gradient's norm", "largest weight")
"""What every optimiser step looks at."""


def require_finite(step: int, numbers: Mapping[str, float], remedy: str) -> None:
    """Refuse the first of `numbers`, by name, that is not finite at the 1-based `step`.

    Raises:
        Diverged: "step 12: the loss is NaN; " and the remedy.
    """
    for name, value in numbers.items():
        if not math.isfinite(value):
            raise Diverged(f"step {step}: the {name} is {spelt(value)}; {remedy}")


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest magnitude in all of them, NaN if there is any: one pass, no wait for a device.

    `aminmax` takes a tenth of the infinity norm's time on a CPU, whose kernel is not vectorised.
    """
    ends = [torch.stack(value.detach().aminmax()) for value in tensors]
    return torch.stack(ends).abs().max()


def is_finite(value: Tensor) -> bool:
    """Whether it has no NaN and no infinity, in one pass and without a copy.

    On a CPU exponents are looked at as fast as memory is read. `aminmax` carries a NaN along; it
    takes a twentieth of the time of `isfinite().all()` there.
    """
    if not value.is_floating_point() or value.numel() == 0:
        return True
    exponent = EXPONENTS.get(value.dtype)
    if exponent and value.device.type == "cpu" and value.is_contiguous() and (found := _library()):
        look = found.finite_16 if value.itemsize == 2 else found.finite_32
        return bool(look(value.data_ptr(), value.numel(), exponent))
    ends = torch.aminmax(value if value.dtype in WITH_EXTREMES else value.double())
    return bool(torch.isfinite(torch.stack(ends)).all())


@cache
def _library() -> ctypes.CDLL | None:
    found = native(Path(__file__).with_name("finite.c")).library
    if found is not None:
        found.finite_16.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint16]
        found.finite_32.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32]
        found.finite_16.restype = found.finite_32.restype = ctypes.c_int64
    return found


def spelt(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
