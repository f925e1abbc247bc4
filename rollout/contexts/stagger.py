"""The student's own codes one scale deep, for next-scale models (SAR, arXiv 2512.06421;
docs/method.md, "Staggered scales").

One pass over a data sequence gives the student's own codes of every scale, each predicted from the
true coarser ones. They are what is read next: teacher and student see, at scale k + 1, what the
student would see had it decoded these codes itself, for the price of one pass.

`history = "full"` reads them as any sequence is read: the canvas that is enlarged for scale k + 1
holds the own codes of all scales up to k, and attention sees the maps of all of them; so own codes
that are the data's are read just as data is. "truncated" is the released code's second pass: a
scale sees the class and its own input, no scale between.

The policy is the student, for its weights decided what is read, so rows go stale. The law is
approximate: a code was drawn, if it was, from its distribution behind the true coarser scales, not
behind those that the row has, so that a ratio of probabilities would be of two different contexts.

Shape letters: B rows, K conditions, G samples of each, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from common.errors import InputError
from common.exchange.provenance import Law
from common.models.backbone import Backbone
from common.models.plan import DecodePlan
from common.models.residual_quantizer import ResidualQuantizer
from rollout.context import RolloutRequest
from rollout.drawn import Drawn
from rollout.forced import ForcedContext, ForcedPass, Groups
from rollout.sampler import SamplingConfig, noise


class Config(ForcedContext):
    needs_scales: ClassVar[bool] = True

    prediction: Literal["argmax", "sample"] = "argmax"
    """argmax: the student's likeliest codes, as in the released scripts; sample: drawn codes, by
    rollout.sampling."""
    history: Literal["full", "truncated"] = "full"
    """full: a scale sees own codes of all scales before it; truncated: the class and its own input
    alone, as in the released code."""
    target: Literal["teacher", "own", "data", "requantised"] = "teacher"
    """teacher: what the teacher says behind the same own codes, by any objective with one. For
    objective.kind=sar, without a teacher: own: the student's likeliest codes (the paper's);
    data: the data's own codes, as if nothing before them were wrong (the released code's other
    variant); requantised: the codes of what the own scales before lack of the image, as far as its
    data codes show it."""

    @property
    def has_input(self) -> bool:
        return self.target in ("data", "requantised") or self.has_hard_labels

    @property
    def has_hard_labels(self) -> bool:
        """Whether labels are the likeliest codes, and what is read is drawn."""
        return self.target == "own" and self.prediction == "sample"

    @property
    def has_labels(self) -> bool:
        return self.target != "teacher"

    def law(self, student: SamplingConfig) -> Law:
        return "approximate"

    def sampler_of(self, student: ForcedPass) -> "StaggerSampler":
        if self.target == "requantised":
            quantiser_of(student.backbone)
        return StaggerSampler(student, self)


@dataclass(frozen=True, slots=True)
class StaggerSampler:
    """The student, as a sampler of every scale behind the true coarser ones."""

    student: ForcedPass
    config: Config

    def __call__(
        self,
        work: RolloutRequest,
        seeds: Sequence[int],
        plan: DecodePlan,
        order_seeds: Sequence[int] | None = None,
    ) -> Drawn:
        """As `rollout.drawn.Sampler`."""
        groups, data_BL = Groups.of(order_seeds or seeds), plan.to_slots(work.cell_BL)
        config, draws = self.config, self.config.prediction == "sample"
        noise_KLG = groups.split(noise(seeds, data_BL.shape[1])) if draws else None
        given = groups.firsts(work.label_B), groups.firsts(data_BL), groups.plan(plan)
        made = self.student.draws(*given, noise_KLG, best=config.has_hard_labels)
        hard_BL = groups.joined(made[0][..., :1])
        own_BL, logprob_BL = (groups.joined(of[..., config.has_hard_labels :]) for of in made)
        history = 0 if config.history == "truncated" else None
        if not draws or config.has_labels:
            logprob_BL = torch.zeros_like(logprob_BL)  # what is given, or drawn with certainty
        if config.has_hard_labels:
            return Drawn(hard_BL, logprob_BL, own_BL, history)
        if config.target == "data":
            return Drawn(data_BL, logprob_BL, own_BL, history)
        if config.target == "requantised":
            right_BL = requantised(self.student.backbone, data_BL, own_BL)
            return Drawn(right_BL, logprob_BL, own_BL, history)
        return Drawn(own_BL, logprob_BL, None, history)


@torch.no_grad()
def requantised(backbone: Backbone, data_BL: Tensor, own_BL: Tensor) -> Tensor:
    """Codes of what the own scales before each lack of the latent image, on the CPU. No encoder is
    at hand, so that image is the sum of all data codes: what the decoder sees of the data."""
    quantiser = quantiser_of(backbone)
    device = quantiser.code_VD.device
    latent = quantiser.accumulate(data_BL.to(device))
    return quantiser.requantise(latent, own_BL.to(device)).cpu()


def quantiser_of(backbone: Backbone) -> ResidualQuantizer:
    """What paints the backbone's scales.

    Raises:
        InputError: its scales are no residuals of one latent image.
    """
    found = getattr(backbone, "quantizer", None)
    if not isinstance(found, ResidualQuantizer):
        raise InputError(
            "contexts.sources.stagger.target is requantised, but the student's family has no "
            "residual quantiser; set target to teacher or own"
        )
    return found
