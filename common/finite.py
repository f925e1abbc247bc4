"""Numbers must stay finite while something is trained; a run ends by naming the one that is not.

Nothing that is NaN or infinite is published, stored or plotted.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from common.errors import Diverged

WITH_EXTREMES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What torch finds extremes of; others (float8) only hold numbers."""
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

    `aminmax` carries a NaN along. It takes a twentieth of the time of `isfinite().all()`, less
    than a copy of the tensor, on a CPU.
    """
    if not value.is_floating_point() or value.numel() == 0:
        return True
    ends = torch.aminmax(value if value.dtype in WITH_EXTREMES else value.double())
    return bool(torch.isfinite(torch.stack(ends)).all())


def spelt(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
