"""Classes that the teacher alone knows: it judges what an unconditional student samples.

A privileged teacher (arXiv 2605.19354; docs/method.md, "Privileged teachers"). Labels stay ids of
classes on the way, so that classes are dropped and counted as ever, but the student reads the null
class for all of them, in its own pretraining as well.
"""

import torch
from torch import Tensor

from common.exchange.condition import ClassConditions, ConditionsConfig


class HiddenClasses(ClassConditions):
    """The ids of the classes, each of which stands for the null class."""

    def resolve(self, id_B: Tensor) -> Tensor:
        return torch.full_like(id_B, self.null)


class Config(ConditionsConfig):
    def table(self, num_classes: int) -> HiddenClasses:
        return HiddenClasses(num_classes)

    def teacher_table(self, num_classes: int) -> tuple[ClassConditions, Tensor]:
        return ClassConditions(num_classes), torch.arange(num_classes + 1)
