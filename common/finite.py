"""Numbers must stay finite while something is trained; a run ends by naming the one that is not.

Nothing that is NaN or infinite is published, stored or plotted.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from common.errors import Diverged

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


def spelt(value: float) -> str:
    return "NaN" if math.isnan(value) else "infinite"
