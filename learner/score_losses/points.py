"""Where scores are compared: noisy vectors x = (1 - t) vector + t noise, at several times of every
slot (Distilled Decoding 2, arXiv 2510.21003, appendix C.2; docs/one_step.md, "Losses").

Shape letters: B sequences, L slots, D code width, M draws of (time, noise) for each slot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from common.config.quantities import Factor
from common.config.schema import Config
from common.randomness import derive_seed

Share = Annotated[float, Field(gt=0, le=1)]


class TimeLaw(Config):
    """How the time of a noisy vector is drawn; 1 is noise, 0 is a code. The paper does not say."""

    law: Literal["uniform", "logit_normal"] = "uniform"
    """uniform: alike between `lowest` and `highest`. logit_normal: mostly in the middle of them, or
    where `mean` says, as rectified flows are trained (arXiv 2403.03206)."""
    lowest: Share = 0.01
    """At 0 a velocity's target has no bound."""
    highest: Share = 0.99
    """SiD leaves the noisiest 20 % out (0.8)."""
    mean: Annotated[float, Field(ge=-20, le=20)] = 0.0
    """Of the logit, for logit_normal; above 0: more noise."""
    std: Factor = 1.0
    """Of the logit, for logit_normal."""

    @model_validator(mode="after")
    def _some_time_is_left(self) -> Self:
        if self.lowest > self.highest:
            raise ValueError(f"lowest is {self.lowest}, above highest, which is {self.highest}")
        return self

    def times(self, uniform: Tensor) -> Tensor:
        """Times of uniforms in [0, 1), of any shape, rising with them."""
        if self.law == "logit_normal":
            normal = torch.special.ndtri(uniform)
            uniform = torch.sigmoid(self.mean + self.std * normal)
        return self.lowest + (self.highest - self.lowest) * uniform


@dataclass(frozen=True, slots=True)
class Points:
    """Draws for every slot of B sequences."""

    time_MBL: Tensor
    noise_MBLD: Tensor

    def between(self, vector_BLD: Tensor) -> Tensor:
        """x_MBLD, differentiable in the vectors."""
        time_MBL1 = self.time_MBL[..., None]
        return (1 - time_MBL1) * vector_BLD + time_MBL1 * self.noise_MBLD

    def to(self, device: torch.device) -> "Points":
        return Points(self.time_MBL.to(device), self.noise_MBLD.to(device))


def draw_points(
    seeds: Sequence[int], length: int, width: int, *, draws: int, times: TimeLaw
) -> Points:
    """float32, on the CPU, one seed for each sequence: no row's draws depend on its company, so
    that they are the same under any split of a batch."""
    generator = torch.Generator()
    time_rows, noise_rows = [], []
    for seed in seeds:
        generator.manual_seed(derive_seed(seed, "points"))
        time_rows.append(torch.rand(draws, length, generator=generator))
        noise_rows.append(torch.randn(draws, length, width, generator=generator))
    return Points(times.times(torch.stack(time_rows, 1)), torch.stack(noise_rows, 1))
