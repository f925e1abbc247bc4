"""Whole sequences by a one-pass student, from the noise of their seeds.

Shape letters: B sequences of a lease, L slots, D code width.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import Diverged
from common.exchange.condition import Conditions
from common.finite import is_finite
from common.models.generator import Generator


@dataclass(frozen=True, slots=True)
class OnePassSampler:
    """The student where it decodes nothing: its rows have no log-probabilities."""

    generator: Generator
    conditions: Conditions
    """What the labels stand for."""

    @torch.no_grad()
    def __call__(self, label_B: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(token_BL, vector_BLD) in the tokenizer's order, on the CPU, float32.

        Raises:
            Diverged: a vector is not finite.
        """
        device = next(self.generator.parameters()).device
        made = self.generator.generate(self.conditions.resolve(label_B.to(device)), seeds)
        if not is_finite(made.vector_BLD):
            raise Diverged("a one-pass student's code vectors are not finite")
        return made.token_BL.cpu(), made.vector_BLD.float().cpu()
