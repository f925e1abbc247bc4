"""Classes that the teacher alone knows: it judges what an unconditional student samples.

A privileged teacher (arXiv 2605.19354; docs/method.md, "Privileged teachers"). Labels stay ids of
classes on the way, so that classes are dropped and counted as ever, but the student reads the null
class for all of them, in its own pretraining as well.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.exchange.condition import ClassConditions, Conditions, ConditionsConfig


@dataclass(frozen=True, slots=True)
class HiddenClasses(Conditions):
    """The ids of the classes, each of which stands for the null class."""

    num_classes: int

    @property
    def null(self) -> int:
        return self.num_classes

    def __len__(self) -> int:
        return self.num_classes + 1

    def resolve(self, id_B: Tensor) -> Tensor:
        return torch.full_like(id_B, self.num_classes)


class Config(ConditionsConfig):
    def table(self, num_classes: int) -> HiddenClasses:
        return HiddenClasses(num_classes)

    def teacher_table(self, num_classes: int) -> tuple[ClassConditions, Tensor]:
        return ClassConditions(num_classes), torch.arange(num_classes + 1)
