"""How far two models are apart as distributions of sequences, without features of images.

By the chain rule the divergence of whole sequences is the expected sum, along the one's samples, of
divergences between the two models' distributions of the next code. With all of these at hand every
sample gives that sum exactly, which has far less noise than log p - log q of what was drawn.
Everything is in nats per token, so that lengths compare.

Shape letters: B sequences, L slots, N sequences in all, V codes.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import Diverged
from common.finite import is_finite

ERROR = "_se"
"""Behind the name of a number: its standard error, over sequences."""
LEAST = 2
"""Sequences without which a number has no error."""


def divergence_of_rows(of_BLV: Tensor, from_BLV: Tensor) -> Tensor:
    """KL(of || from) per token, meant over the slots of every row, float64, from
    log-probabilities."""
    share_BLV, ratio_BLV = of_BLV.double().exp(), of_BLV.double() - from_BLV.double()
    return torch.where(share_BLV == 0, 0, share_BLV * ratio_BLV).sum(-1).mean(1)


def acceptance_of_rows(student_BLV: Tensor, teacher_BLV: Tensor) -> Tensor:
    """1 - TV of the two, meant over the slots of every row: the share of the student's codes that
    the teacher would keep if it were decoded with the student as a draft (arXiv 2302.01318)."""
    return torch.minimum(student_BLV.double().exp(), teacher_BLV.double().exp()).sum(-1).mean(1)


def entropy_of_rows(logprob_BLV: Tensor) -> Tensor:
    """Entropy of the next code, meant over the slots of every row: on a model's own samples that of
    its sequences, per token."""
    share_BLV = logprob_BLV.double().exp()
    return -torch.where(share_BLV == 0, 0, share_BLV * logprob_BLV.double()).sum(-1).mean(1)


def surprise_of_rows(logprob_BLV: Tensor, token_BL: Tensor) -> Tensor:
    """-log q of a row's own codes per token."""
    return -logprob_BLV.double().gather(-1, token_BL[..., None])[..., 0].mean(1)


def estimates(rows: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean and standard error of every number of sequences, by name and by name_se.

    Raises:
        Diverged: a number is not finite.
        ValueError: fewer than two sequences.
    """
    found = {}
    for name, value_N in rows.items():
        if len(value_N) < LEAST:
            raise ValueError(f"{name}: {len(value_N)} sequences, of which there is no error")
        if not is_finite(value_N):
            raise Diverged(
                f"{name} is not finite: one of two models gives no probability to codes of the "
                "other; check their weights, or set evaluate.likelihood_samples=0"
            )
        found[name] = float(value_N.mean())
        found[name + ERROR] = float(value_N.std()) / math.sqrt(len(value_N))
    return found
