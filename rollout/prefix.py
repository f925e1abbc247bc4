"""How many ground-truth slots come before what is sampled (VarKD eq. 6, docs/method.md,
"Rollouts")."""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from common.config.quantities import Probability
from common.errors import InputError
from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.context import ContextConfig

ROUNDING = 1e-9
"""0.07 * 100 is a little more than 7: bounds are met up to this."""


class PrefixDistribution(ContextConfig):
    """A source whose prefix k is uniform on the multiples of a unit within
    [min_prefix T, max_prefix T].

    Slots are counted in decoding order: the prefix is the first k cells in raster order, of the
    concatenated token maps, or of the image's own random order.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "lo": "min_prefix",
        "hi": "max_prefix",
        "per": "prefix_per",
    }

    min_prefix: Probability = 0.25
    """Shortest prefix as a fraction of the sequence; 0 is free running."""
    max_prefix: Probability = 0.75
    """Longest prefix as a fraction of the sequence."""
    prefix_per: Literal["sample", "batch"] = "sample"
    """Draw the length for each image, or once per learner step."""
    align: Literal["none", "row"] = "none"
    """row: only whole rows of the grid, for models that decode row by row."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_prefix > self.max_prefix:
            raise ValueError(
                f"min_prefix {self.min_prefix} is larger than max_prefix {self.max_prefix}"
            )
        return self

    def prefix(self, index: int, draws: Draws, *, spec: SequenceSpec, step: int) -> int:
        allowed = self.lengths(spec)
        unit = draws.uniform("prefix", index if self.prefix_per == "sample" else step)
        return allowed[int(unit * len(allowed))]

    def lengths(self, spec: SequenceSpec) -> range:
        """The lengths that may be drawn, all equally likely. Where the bounds leave no
        integer between them, the next larger one.

        Raises:
            InputError: no row ends between min_prefix and max_prefix, or there are no rows.
        """
        width = 1
        if self.align == "row":
            rows, width = spec.grid
            if spec.length != rows * width:
                raise InputError(
                    f"contexts.sources.{self.kind}.align is row, but the tokens are of several "
                    "scales and have no rows; set it to none"
                )
        units = spec.length // width
        low = math.ceil(self.min_prefix * units - ROUNDING)
        high = math.floor(self.max_prefix * units + ROUNDING)
        if low > high:
            if self.align == "row":
                raise InputError(
                    f"contexts.sources.{self.kind}: none of the grid's {units} rows ends between "
                    f"min_prefix {self.min_prefix} and max_prefix {self.max_prefix}; widen them, "
                    "or set align to none"
                )
            high = low
        return range(low * width, high * width + 1, width)
