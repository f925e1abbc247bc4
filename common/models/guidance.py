"""Classifier-free guidance as pure functions.

Every published rule is u + s (c - u) with its own scale s for each decoding step, so it commutes
with a linear head: guiding post-norm hidden vectors equals guiding logits (design: house 4, "What
the teacher sends"). VAR writes (1 + t) c - t u, which is s = 1 + t.

Shape letters: L slots.
"""

from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from common.config.quantities import Weight
from common.config.registry import declared
from common.config.schema import Config
from common.models.plan import DecodePlan

GuidanceRule = Callable[[float, DecodePlan, int], tuple[float, ...]]
"""(scale, plan, interval) -> the scale of every step of the plan. A family's file declares its own
in `GUIDANCE_RULES`, by name."""
PUBLISHED = "published"


def guidance_rules() -> dict[str, GuidanceRule]:
    """The rules of all families by name."""
    return declared("common.models.backbones", "GUIDANCE_RULES")


class Guidance(Config):
    """How strongly; in TOML a bare number is a scale under the model family's published rule."""

    scale: Weight
    """The published knob: LlamaGen's and ARPG's cfg-scale, VAR's cfg (extra strength)."""
    rule: str = PUBLISHED
    """What turns the scale into one per step: published, the model family's own rule; or any that a
    family declares: llamagen, var, arpg_linear, arpg_constant, and those of plug-ins."""
    interval: Annotated[int, Field(ge=-1, le=2**24)] = -1
    """LlamaGen's cfg_interval: tokens 0..interval+1 are guided, later ones not; -1 guides all."""

    @model_validator(mode="before")
    @classmethod
    def _number_is_a_scale(cls, value: Any) -> Any:
        return {"scale": value} if isinstance(value, int | float) else value

    @field_validator("rule")
    @classmethod
    def _some_family_has_the_rule(cls, value: str) -> str:
        if value != PUBLISHED and value not in (known := guidance_rules()):
            raise ValueError(f"is no rule; choose {PUBLISHED} or one of {', '.join(sorted(known))}")
        return value

    def scales(self, plan: DecodePlan, published: str) -> tuple[float, ...]:
        """The scale of every step of `plan`; 1 means the conditional model alone."""
        rule = published if self.rule == PUBLISHED else self.rule
        return guidance_rules()[rule](self.scale, plan, self.interval)


def scale_per_slot(scales: tuple[float, ...], plan: DecodePlan) -> Tensor:
    """scale_L of every slot from the scales of the steps."""
    return torch.tensor(scales)[plan.step_L]


def guide(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """u + s (c - u) on logits or on post-norm hidden vectors, in float32 of half precision; exactly
    c where s is 1."""
    exact = torch.promote_types(conditional.dtype, torch.float32)
    conditional = conditional.to(exact)
    guided = (conditional - unconditional).mul_(scale).add_(unconditional)
    if isinstance(scale, Tensor):
        return torch.where(scale == 1, conditional, guided)
    return conditional if scale == 1 else guided
