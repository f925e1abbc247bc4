"""Mixed rollouts: a ground-truth prefix continued by the student (VarKD eq. 6)."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from common.ledger import Draws
from rollout.context import ContextConfig


class Config(ContextConfig):
    lo: float = Field(default=0.25, ge=0, le=1)
    """Shortest prefix as a fraction of the sequence; 0 is free running."""
    hi: float = Field(default=0.75, ge=0, le=1)
    """Longest prefix as a fraction of the sequence."""
    per: Literal["sample", "step"] = "sample"
    """Draw the length for each image, or once per learner step."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lo > self.hi:
            raise ValueError(f"lo {self.lo} is larger than hi {self.hi}")
        return self

    def prefix(self, index: int, draws: Draws, *, length: int, step: int) -> int:
        """k uniform on the integers of [lo T, hi T] (method.md 2.1)."""
        low, high = math.ceil(self.lo * length), math.floor(self.hi * length)
        unit = draws.uniform("prefix", index if self.per == "sample" else step)
        return low + int(unit * max(high - low + 1, 1))
