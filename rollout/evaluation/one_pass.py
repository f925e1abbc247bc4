"""Draw whole images from students of one or a few passes.

Shape letters: B images of a batch, N images, L slots, D code width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from common.errors import Diverged, InputError
from common.exchange.condition import ClassConditions, Conditions
from common.finite import is_finite
from common.models.backbone import Backbone
from common.models.distilled_decoding import DistilledDecoder
from common.models.few_steps import nearest, teacher_inserted
from common.models.generator import gaussian
from common.models.velocity_model import VelocityModel
from rollout.inserted import inserted
from rollout.sampler import SamplingConfig


@dataclass(frozen=True)
class Between:
    """A part of the teacher's own sampling between two passes (algorithm 4)."""

    teacher: Backbone
    sampling: SamplingConfig
    positions: tuple[int, int]
    """From the first on, before the second, counted as the student's."""


@dataclass(frozen=True)
class Ending:
    """The last steps of the teacher's own sampling, behind what a student made (Distilled Decoding
    2, algorithm 4)."""

    teacher: Backbone
    sampling: SamplingConfig


@dataclass(frozen=True)
class Passes:
    """How a student draws: in so many passes from the first of its positions on (algorithm 3), or
    in two with the teacher between; of Distilled Decoding 2, in one, whose
    last slots the teacher draws anew."""

    steps: int = 1
    between: Between | None = None
    ending: Ending | None = None
    """Whoever draws the last steps, where a student has one pass."""


def vector_batches(
    student: DistilledDecoder | VelocityModel,
    label_N: Tensor,
    seeds: Sequence[int],
    *,
    passes: Passes,
    batch_size: int,
    conditions: Conditions | None = None,
) -> Iterator[Tensor]:
    """vector_BLD in the tokenizer's order, on the student's device, `batch_size` images at a time.

    Image i is a function of weights, label and seed alone.

    Raises:
        InputError: the student was not trained at those positions.
        Diverged: what it says is not finite.
    """
    for first in range(0, len(label_N), batch_size):
        rows = slice(first, first + batch_size)
        vector_BLD = drawn(student, label_N[rows], seeds[rows], passes, conditions)
        if not is_finite(vector_BLD):
            raise Diverged("the student's code vectors are not finite; train it again")
        yield vector_BLD


@torch.no_grad()
def drawn(
    student: DistilledDecoder | VelocityModel,
    label_B: Tensor,
    seeds: Sequence[int],
    passes: Passes,
    conditions: Conditions | None = None,
) -> Tensor:
    """vector_BLD of one batch, see `vector_batches`."""
    device = student.codebook_VD.device
    label_B, table = label_B.to(device), conditions or ClassConditions(student.spec.num_classes)
    condition_B = table.resolve(label_B)
    noise_BLD = gaussian(seeds, student.spec.length, student.code_width).to(device)
    if isinstance(student, VelocityModel):
        vector_BLD = student.vectors(condition_B, noise_BLD)
        return _ended(student, vector_BLD, label_B, seeds, passes, conditions)
    if passes.between is None:
        positions = first_positions(student, passes.steps)
        return student.steps(condition_B, noise_BLD, positions).vector_BLD
    between = passes.between
    student.trained((1, between.positions[1]))
    start, stop = map(student.slots_before, between.positions)
    draws = inserted(between.teacher, label_B, seeds, between.sampling, conditions=conditions)
    jump = partial(student.jump, condition_B)
    codes = student.codebook_VD
    return teacher_inserted(jump, draws, noise_BLD, codes, start=start, stop=stop).vector_BLD


def _ended(
    student: VelocityModel,
    vector_BLD: Tensor,
    label_B: Tensor,
    seeds: Sequence[int],
    passes: Passes,
    conditions: Conditions | None,
) -> Tensor:
    """With the slots of the teacher's last `steps - 1` steps drawn by the teacher."""
    if passes.steps == 1:
        return vector_BLD
    if passes.ending is None:
        raise ValueError(f"a {type(student).__name__} has one pass, and there is no teacher")
    spec, teacher = student.spec, passes.ending.teacher
    start = spec.slots_before((len(spec.scales) or spec.length) - passes.steps + 2)
    draws = inserted(teacher, label_B, seeds, passes.ending.sampling, conditions=conditions)
    token_BL = draws(nearest(vector_BLD[:, :start], student.codebook_VD), spec.length)
    code_BnD = F.embedding(token_BL[:, start:], student.codebook_VD)
    return torch.cat([vector_BLD[:, :start], code_BnD], dim=1)


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
