"""The contract of a solver: carries noise vectors along the flow to one code for each slot.

Shape letters: N slots, K codes of a slot, D code width.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import SerializeAsAny
from torch import Tensor

from common.config.plugins import PluginConfig, from_package
from common.flow.laws import CodeLaw

NUMBERS = 2**24
"""That a solver works on at once, see `CodeLaw.numbers`; more would leave the memory."""
CACHED_NUMBERS = 2**19
"""The same on a CPU, where more would leave the cache and take twice as long."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Where the flow ends."""

    x_ND: Tensor
    """The vector that the solver stopped at, near a code or, with few steps, between codes."""
    token_N: Tensor
    """The code that this means; one of probability above 0."""


class SolverConfig(PluginConfig, ABC):
    """How the ordinary differential equation of DD1 (arXiv 2412.17153, eq. 3) is integrated."""

    is_exact: ClassVar[bool] = False
    """Whether what is reached has the law's own distribution, to the rounding of its default."""

    @abstractmethod
    def solve(self, law: CodeLaw, noise_ND: Tensor) -> Carried:
        """From noise to codes, every slot by itself, in the precision of `law`; all at once."""


AnySolver = Annotated[
    SerializeAsAny[SolverConfig], from_package("common.flow.solvers", default="dpmpp_3m")
]


def carry(solver: SolverConfig, law: CodeLaw, noise_ND: Tensor) -> Carried:
    """`solve`, in chunks of slots."""
    noise_ND = noise_ND.to(law.logprob_NK)
    most = CACHED_NUMBERS if noise_ND.device.type == "cpu" else NUMBERS
    rows = max(1, most // law.numbers)
    parts = [
        solver.solve(law.rows(slice(first, first + rows)), noise_ND[first : first + rows])
        for first in range(0, len(law), rows)
    ]
    return Carried(torch.cat([p.x_ND for p in parts]), torch.cat([p.token_N for p in parts]))
