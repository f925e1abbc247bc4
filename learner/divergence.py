"""Divergences between next-token distributions, exact over the (relaxed) vocabulary.

Student first in names and arguments: q is the student, p the teacher (method.md 0).

Shape letters: N tokens, K categories (codes or clusters).
"""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from common.config import Config


def forward_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """KL(p || q) per token: cover every mode the teacher likes."""
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum(-1)


def reverse_kl(student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
    """KL(q || p) per token: put mass only where the teacher does (VarKD eq. 7)."""
    return (student_NK.exp() * (student_NK - teacher_NK)).sum(-1)


def jensen_shannon(student_NK: Tensor, teacher_NK: Tensor, beta: float) -> Tensor:
    """b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q (GKD, arXiv 2306.13649)."""
    mixture = torch.logaddexp(teacher_NK + math.log(beta), student_NK + math.log1p(-beta))
    towards_teacher = (teacher_NK.exp() * (teacher_NK - mixture)).sum(-1)
    towards_student = (student_NK.exp() * (student_NK - mixture)).sum(-1)
    return beta * towards_teacher + (1 - beta) * towards_student


class Divergence(Config):
    """A divergence as a value, so that objectives are combinations and not subclasses."""

    name: Literal["fkl", "rkl", "jsd"] = "rkl"
    """fkl: KL(teacher, student); rkl: KL(student, teacher); jsd: between the two."""
    beta: float = Field(default=0.5, gt=0, lt=1)
    """The teacher's weight in the mixture of jsd."""

    def __call__(self, student_NK: Tensor, teacher_NK: Tensor) -> Tensor:
        if self.name == "fkl":
            return forward_kl(student_NK, teacher_NK)
        if self.name == "rkl":
            return reverse_kl(student_NK, teacher_NK)
        return jensen_shannon(student_NK, teacher_NK, self.beta)
