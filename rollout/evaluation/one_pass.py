"""Draw whole images from students of one or a few passes.

Shape letters: B images of a batch, N images, L slots, D code width.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from common.errors import Diverged, InputError
from common.exchange.condition import ClassConditions, Conditions
from common.finite import is_finite
from common.models.distilled_decoding import DistilledDecoder
from common.models.generator import gaussian


def vector_batches(
    student: DistilledDecoder,
    label_N: Tensor,
    seeds: Sequence[int],
    *,
    steps: int,
    batch_size: int,
    conditions: Conditions | None = None,
) -> Iterator[Tensor]:
    """vector_BLD in the tokenizer's order, on the student's device, `batch_size` images at a time.

    Image i is a function of weights, label and seed alone. `steps` passes begin at the first of
    the positions that the student was trained at (Distilled Decoding 1, algorithm 3).

    Raises:
        InputError: it was trained at fewer positions.
        Diverged: what it says is not finite.
    """
    positions = first_positions(student, steps)
    table = conditions or ClassConditions(student.spec.num_classes)
    device = student.codebook_VD.device
    for first in range(0, len(label_N), batch_size):
        rows = slice(first, first + batch_size)
        condition_B = table.resolve(label_N[rows].to(device))
        noise_BLD = gaussian(seeds[rows], student.spec.length, student.code_width)
        with torch.no_grad():
            vector_BLD = student.steps(condition_B, noise_BLD.to(device), positions).vector_BLD
        if not is_finite(vector_BLD):
            raise Diverged("the student's code vectors are not finite; train it again")
        yield vector_BLD


def first_positions(student: DistilledDecoder, steps: int) -> tuple[int, ...]:
    """Where so many passes begin.

    Raises:
        InputError: the student was trained at fewer positions.
    """
    trained = student.positions
    if steps > len(trained):
        known = ", ".join(map(str, trained))
        raise InputError(
            f"evaluate.steps is {steps}, but the student was trained at {len(trained)} "
            f"{'position' if len(trained) == 1 else 'positions'} ({known}): it takes as many "
            "steps at most; lower it, or train with more of models.student.positions"
        )
    return trained[:steps]
