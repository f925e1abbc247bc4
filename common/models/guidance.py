"""Classifier-free guidance as pure functions.

Every published rule is u + s (c - u) with its own scale s for each decoding step, so it commutes
with a linear head: guiding post-norm hidden vectors equals guiding logits (design: house 4, "What
the teacher sends"). VAR writes (1 + t) c - t u, which is s = 1 + t.

Shape letters: L slots.
"""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from common.config.quantities import Weight
from common.config.schema import Config
from common.models.plan import DecodePlan

Rule = Literal["llamagen", "var", "arpg_linear", "arpg_constant"]


class Guidance(Config):
    """How strongly; in TOML a bare number is a scale under the model family's published rule."""

    scale: Weight
    """The published knob: LlamaGen's and ARPG's cfg-scale, VAR's cfg (extra strength)."""
    rule: Literal["published", "llamagen", "var", "arpg_linear", "arpg_constant"] = "published"
    """Whose rule turns the scale into one per step; published: the model family's own."""
    interval: Annotated[int, Field(ge=-1, le=2**24)] = -1
    """LlamaGen's cfg_interval: tokens 0..interval+1 are guided, later ones not; -1 guides all."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_a_scale(cls, value: Any) -> Any:
        return {"scale": value} if isinstance(value, int | float) else value

    def scales(self, plan: DecodePlan, published: Rule) -> tuple[float, ...]:
        """The scale of every step of `plan`; 1 means the conditional model alone."""
        rule = published if self.rule == "published" else self.rule
        if rule == "llamagen":
            return llamagen_scales(self.scale, plan, self.interval)
        if rule == "var":
            return var_scales(self.scale, plan)
        if rule == "arpg_linear":
            return arpg_linear_scales(self.scale, plan)
        return (self.scale,) * len(plan.step_sizes)


def llamagen_scales(scale: float, plan: DecodePlan, interval: int = -1) -> tuple[float, ...]:
    """Constant and active only above 1, as published (docs/backbones.md, "LlamaGen sampling").

    `interval` counts decoding steps after the class slot's, hence the off-by-one: tokens
    0..interval+1 are guided.
    """
    scale = max(scale, 1.0)
    return tuple(
        scale if interval < 0 or start <= interval + 1 else 1.0 for start in plan.starts[:-1]
    )


def var_scales(cfg: float, plan: DecodePlan) -> tuple[float, ...]:
    """1 + cfg k / (K - 1): none at the first token map, 1 + cfg at the last (docs/backbones.md,
    "VAR sampling")."""
    last = max(len(plan.step_sizes) - 1, 1)
    return tuple(1 + cfg * step / last for step in range(len(plan.step_sizes)))


def arpg_linear_scales(scale: float, plan: DecodePlan) -> tuple[float, ...]:
    """1 + (g - 1) done / N, `done` with the current step's tokens included (docs/backbones.md,
    "ARPG decoding")."""
    return tuple(1 + (scale - 1) * end / plan.starts[-1] for end in plan.starts[1:])


def scale_per_slot(scales: tuple[float, ...], plan: DecodePlan) -> Tensor:
    """scale_L of every slot from the scales of the steps."""
    return torch.tensor(scales)[plan.step_L]


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """u + s (c - u) on logits or on post-norm hidden vectors; exactly c where s is 1."""
    guided = unconditional + scale * (conditional - unconditional)
    if isinstance(scale, Tensor):
        return torch.where(scale == 1, conditional, guided)
    return conditional if scale == 1 else guided
