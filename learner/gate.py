"""How much a token counts: teacher confidence and the first-hit gate (VarKD eqs. 8-10).

Shape letters: B sequences, L slots.
"""

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeFloat
from torch import Tensor

from common.config import Config


@dataclass(frozen=True, slots=True)
class Weighing:
    """Per-token weight (no gradient), which suffix slots are still open, and which could be."""

    weight_BL: Tensor
    open_BL: Tensor
    support_BL: Tensor


class GateConfig(Config):
    tau: float = Field(default=0.1, ge=0, lt=1)
    """Confidence below this closes the sequence; 0 switches the gate off."""
    keep_hit: bool = True
    """The slot that closes the sequence keeps its own (small) weight."""
    weight: Literal["entropy", "none"] = "entropy"
    """entropy: confidence is the weight; none: every open slot counts 1."""
    power: NonNegativeFloat = 1.0
    """Exponent of the confidence weight."""


def confidence(entropy_BL: Tensor, vocab_size: int) -> Tensor:
    """alpha = 1 - H / log V, from the untempered teacher's entropy in nats."""
    return 1 - entropy_BL.float() / math.log(vocab_size)


def first_hit(alpha_BL: Tensor, suffix_BL: Tensor, tau: float, *, keep_hit: bool) -> Tensor:
    """open_BL: the first suffix slot with alpha < tau closes everything strictly after it.

    A hit inside the ground-truth prefix says nothing about drift and does not count
    (method.md 2.3).
    """
    if tau == 0:
        return suffix_BL
    low = ((alpha_BL < tau) & suffix_BL).int()
    hits = low.cumsum(1)
    before = hits - low if keep_hit else hits
    return (before == 0) & suffix_BL


def weigh(config: GateConfig, alpha_BL: Tensor, suffix_BL: Tensor) -> Weighing:
    """w = sg[alpha^power * open * suffix]."""
    open_BL = first_hit(alpha_BL, suffix_BL, config.tau, keep_hit=config.keep_hit)
    weight_BL = open_BL.float()
    if config.weight == "entropy":
        # Rounding can put a uniform teacher's confidence at -1e-7.
        weight_BL = weight_BL * alpha_BL.clamp_min(0) ** config.power
    return Weighing(weight_BL.detach(), open_BL, suffix_BL)
