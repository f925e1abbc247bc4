"""Where a sequence's prefix comes from and who continues it: the mixture of context sources.

The paper's template (VarKD eqs. 2-6) is an expectation over prefixes; a context source is one
such prefix distribution, one file in rollout/contexts. The choice for image i is a pure function
of (run seed, i).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, NonNegativeFloat, SerializeAsAny, model_validator
from torch import Tensor

from common.config import Config
from common.ledger import Draws, Schedule
from common.plugins import PluginConfig, make
from common.tokens import TokenDataset


class ContextConfig(PluginConfig, ABC):
    ratio: NonNegativeFloat = 1.0
    """Relative weight in the mixture; the student's share of the total is the paper's lambda."""

    @abstractmethod
    def prefix(self, index: int, draws: Draws, *, length: int, step: int) -> int:
        """Number of ground-truth slots of image `index`; `length` means no sampling at all."""


def _by_kind(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        kind: make("rollout.contexts", {**fields, "kind": kind})
        if isinstance(fields, dict)
        else fields
        for kind, fields in value.items()
    }


class ContextsConfig(Config):
    coin: Literal["step", "sample"] = "step"
    """Whether the source is drawn once per learner step (as TRL's GKD) or per image."""
    sources: Annotated[
        dict[str, SerializeAsAny[ContextConfig]], BeforeValidator(_by_kind), Field(min_length=1)
    ]
    """Tables by file name in rollout/contexts, e.g. sources.student.ratio=0.1."""

    @model_validator(mode="after")
    def _some_source_has_weight(self) -> "ContextsConfig":
        if self.total <= 0:
            raise ValueError("every ratio is 0; give at least one context source a weight")
        return self

    @property
    def total(self) -> float:
        return math.fsum(source.ratio for source in self.sources.values())

    def shares(self) -> dict[str, float]:
        """Probability of each source, in a fixed order."""
        return {kind: s.ratio / self.total for kind, s in sorted(self.sources.items())}

    def choose(self, index: int, draws: Draws, schedule: Schedule) -> str:
        """The context of image `index`."""
        step = index // schedule.images_per_step
        coin = draws.uniform("context", step if self.coin == "step" else index)
        reached = 0.0
        for kind, share in self.shares().items():
            reached += share
            if coin < reached:
                return kind
        return max(self.shares(), key=lambda kind: self.shares()[kind])  # rounding at the top end


@dataclass(frozen=True, slots=True)
class Assignment:
    """What to sample for a block of images: all of it a pure function of (seed, index)."""

    id_B: Tensor
    label_B: Tensor
    """Labels after class dropout."""
    context: tuple[str, ...]
    prefix_B: Tensor
    cell_BL: Tensor
    """Ground-truth codes by grid position (not yet in plan order)."""


def assign(
    contexts: ContextsConfig,
    indices: Sequence[int],
    *,
    draws: Draws,
    schedule: Schedule,
    data: TokenDataset,
    class_dropout: float,
) -> Assignment:
    label_B, cell_BL = data.pick(indices, draws, class_dropout)
    context = tuple(contexts.choose(index, draws, schedule) for index in indices)
    prefixes = [
        contexts.sources[kind].prefix(
            index, draws, length=data.spec.length, step=index // schedule.images_per_step
        )
        for kind, index in zip(context, indices, strict=True)
    ]
    return Assignment(torch.tensor(indices), label_B, context, torch.tensor(prefixes), cell_BL)
