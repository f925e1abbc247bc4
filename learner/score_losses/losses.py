"""The three losses of Distilled Decoding 2 (arXiv 2510.21003, eq. 4 to 6; docs/one_step.md,
"Losses"), of every slot, averaged over its draws of noise. Squares and products are summed over the
code's width, as written there; what slots count and what their sum is divided by is the caller's.

Features are those of clean vectors before a slot: a slot's loss teaches nothing to the vectors
that it is conditioned on, wherever these came with a gradient.

Shape letters: B sequences, L slots, C width, D code width, M draws.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from common.config.quantities import Factor, Weight
from common.config.schema import Config
from common.models.velocity_model import VelocityModel
from common.spec import SequenceSpec
from learner.score_losses.denoisers import Denoiser, velocity_of
from learner.score_losses.points import Points

LEAST_OMEGA = 1e-5
"""As SiD's code has it."""


def ground_truth_score_loss(
    model: VelocityModel,
    feature_BLC: Tensor,
    vector_BLD: Tensor,
    teacher: Denoiser,
    points: Points,
) -> Tensor:
    """GTS (eq. 6): loss_BL = |v(x) - (x - D(x)) / t|^2 against the teacher's D, at noisy codes of
    sequences that the teacher drew."""
    x_MBLD = points.between(vector_BLD.detach())
    with torch.no_grad():
        target_MBLD = velocity_of(teacher(x_MBLD, points.time_MBL), x_MBLD, points.time_MBL)
    return _squares(model.velocity(x_MBLD, points.time_MBL, feature_BLC), target_MBLD)


def fake_score_loss(
    model: VelocityModel, feature_BLC: Tensor, vector_BLD: Tensor, points: Points
) -> Tensor:
    """FCS (eq. 5): loss_BL = |v(x) - (noise - vector)|^2, at noisy vectors of the generator: of
    guidance networks. The ordinary diffusion loss, where the vectors are codes."""
    vector_BLD = vector_BLD.detach()
    said_MBLD = model.velocity(points.between(vector_BLD), points.time_MBL, feature_BLC)
    return _squares(said_MBLD, points.noise_MBLD - vector_BLD)


class ScoreDistance(Config):
    """What the generator makes smaller (eq. 4): a distance between the teacher's score and the
    guidance network's, at noisy vectors of its own."""

    rule: Literal["sid", "dmd"] = "sid"
    """sid: (D_T - D_G) . [(D_T - q) - alpha (D_T - D_G)] / omega, with gradient through q and
    through x in both D (arXiv 2404.04057). dmd: (D_G - D_T) / omega is q's gradient, and no score
    is differentiated (arXiv 2405.14867)."""
    alpha: Weight = 1.0
    """Of sid; the paper's 0.8, 1.0 and 1.2 differ little."""
    omega: Literal["sequence", "slot", "none"] = "sequence"
    """Mean of |q - D_T|, without gradient: over all slots of a sequence and a draw, as SiD's code
    has it for an image, or over each slot's own numbers; none: 1. The paper says only that samples
    are weighted by the norm of their score."""

    def loss(
        self, vector_BLD: Tensor, teacher: Denoiser, guidance: Denoiser, points: Points
    ) -> Tensor:
        """CSD: loss_BL of the generator's vectors q; both denoisers know the vectors before a slot
        without gradient.

        Only the gradient by `vector_BLD` is meant: the guidance network's own parameters have one
        as well, which `by_vectors_alone` leaves out.
        """
        teacher_MBLD, guidance_MBLD = self._denoised(vector_BLD, teacher, guidance, points)
        with torch.no_grad():
            omega = self._omega((vector_BLD - teacher_MBLD).abs())
        if self.rule == "dmd":
            goal_MBLD = vector_BLD - (guidance_MBLD - teacher_MBLD) / omega
            return _squares(vector_BLD, goal_MBLD.detach()) / 2
        apart_MBLD = teacher_MBLD - guidance_MBLD
        rest_MBLD = teacher_MBLD - vector_BLD - self.alpha * apart_MBLD
        return (apart_MBLD * rest_MBLD / omega).sum(-1).mean(0)

    def _denoised(
        self, vector_BLD: Tensor, teacher: Denoiser, guidance: Denoiser, points: Points
    ) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.rule == "sid"):
            x_MBLD = points.between(vector_BLD)
            return teacher(x_MBLD, points.time_MBL), guidance(x_MBLD, points.time_MBL)

    def _omega(self, distance_MBLD: Tensor) -> Tensor:
        if self.omega == "none":
            return distance_MBLD.new_ones(())
        over = (-2, -1) if self.omega == "sequence" else (-1,)
        return distance_MBLD.mean(over, keepdim=True).clamp_min(LEAST_OMEGA)


def by_vectors_alone(vector_BLD: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """loss_B of the vectors, whose gradient reaches nothing but them.

    Neither parameters of other networks that the loss looks through nor their graph survive this,
    so the generator's own graph is all that is left for the way back.
    """
    leaf_BLD = vector_BLD.detach().requires_grad_()
    with torch.enable_grad():
        loss_B = loss(leaf_BLD)
    (gradient_BLD,) = torch.autograd.grad(loss_B.sum(), leaf_BLD)
    pull_B = (vector_BLD * gradient_BLD).sum((1, 2))
    return loss_B.detach() + pull_B - pull_B.detach()


class PositionWeights(Config):
    """How much slots count, in a straight line from the first step of the sequence to the last
    (tokens, or scales where there are several)."""

    first: Factor = 1.0
    """At the first step."""
    last: Factor = 1.0
    """At the last. The paper's own are alike; its authors found 3 and 1 better (FID 6.91 for 8.35
    of VAR-d16, in their answers to reviewers)."""

    def weights(self, spec: SequenceSpec) -> Tensor:
        """weight_L in the tokenizer's order, of mean 1."""
        sizes = [side**2 for side in spec.scales] or [1] * spec.length
        weight_S = torch.linspace(self.first, self.last, len(sizes))
        weight_L = weight_S.repeat_interleave(torch.tensor(sizes))
        return weight_L / weight_L.mean()


def _squares(said_MBLD: Tensor, target_MBLD: Tensor) -> Tensor:
    return (said_MBLD - target_MBLD).square().sum(-1).mean(0)
