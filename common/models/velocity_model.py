"""The network of Distilled Decoding 2 in all of its parts: autoregressive diffusion model, guidance
network and one-step generator (arXiv 2510.21003, sections 3.2.3 and 3.3; docs/one_step.md,
"Networks").

A backbone of the teacher's make reads, for every slot, the vectors of the slots before it; a small
head (common/models/velocity_head.py) reads the slot's own noisy vector, a time and what the
backbone says, and returns a velocity. Time is that of Distilled Decoding 2: 1 is noise, 0 is a
code, and the velocity is dx/dt = noise - code.

Shape letters: B sequences, L slots, C width, D code width, V codes; ... leading axes.
"""

from typing import ClassVar

import torch
from torch import Tensor

from common.config.quantities import Depth, Width
from common.device import autocast
from common.models.backbone import Backbone
from common.models.generator import Generated
from common.models.one_pass import OnePassConfig, OnePassStudent
from common.models.plan import natural_plan
from common.models.velocity_head import VelocityHead
from common.spec import SequenceSpec


class VelocityModelConfig(OnePassConfig):
    """A backbone of the teacher's sizes, without its layer of logits, and a head of its own."""

    head_width: Width = 1024
    """Channels of the head; DD2 does not say its own, this is MAR's default."""
    head_depth: Depth = 3
    """Blocks of the head; as above."""


class VelocityModel(OnePassStudent):
    """`features` once per sequence, then `velocity` of any number of noisy vectors of its slots.

    As a generator it reads noise in the place of codes: shifted by one step in the backbone, the
    slot's own in the head, at time 1.
    """

    network: Backbone
    """Without its head; its config `reads_vectors`."""
    positions: ClassVar[tuple[int, ...]] = (1,)
    """Points of the trajectory that are trained, as DD1 counts them: the beginning alone."""

    def __init__(
        self,
        config: VelocityModelConfig,
        network: Backbone,
        *,
        feature_width: int,
        codebook_VD: Tensor,
        spec: SequenceSpec,
    ) -> None:
        super().__init__(spec, codebook_VD)
        network.drop_head()
        self.network = network
        self.velocity_head = VelocityHead(
            self.code_width, feature_width, width=config.head_width, depth=config.head_depth
        )

    def features(self, label_B: Tensor, vector_BLD: Tensor) -> Tensor:
        """feature_BLC of every slot, from the class and the vectors of the steps before the slot's
        own, as the teacher's plan has them; vectors are codes, what a generator made, or noise.
        Differentiable in the vectors."""
        plan = natural_plan(len(label_B), self.spec)
        return self.network.features_of(label_B, vector_BLD.float(), plan)

    def velocity(self, x_BLD: Tensor, time_BL: Tensor, feature_BLC: Tensor) -> Tensor:
        """velocity (..., B, L, D), float32, at x and times (..., B, L); axes before those of the
        features (draws of noise) share them."""
        return self.velocity_head(x_BLD, time_BL, feature_BLC)

    def vectors(self, label_B: Tensor, noise_BLD: Tensor) -> Tensor:
        """vector_BLD, float32: noise - velocity, one Euler step from time 1 to 0."""
        noise_BLD = noise_BLD.float()
        feature_BLC = self.features(label_B, noise_BLD)
        time_1 = torch.ones(1, device=noise_BLD.device)
        return noise_BLD - self.velocity(noise_BLD, time_1, feature_BLC)

    def logits(self, vector_BLD: Tensor) -> Tensor:
        """Minus half the squared distance to every code, less what is the same for all: largest at
        the nearest code. In float32 also under autocast."""
        with autocast(vector_BLD.device, torch.float32):
            half_norm_V = self.codebook_VD.square().sum(-1) / 2
            return vector_BLD.float() @ self.codebook_VD.T - half_norm_V

    def forward(self, label_B: Tensor, noise_BLD: Tensor) -> Generated:
        """One step, from noise; the tokens are the nearest codes."""
        vector_BLD = self.vectors(label_B, noise_BLD)
        logit_BLV = self.logits(vector_BLD)
        return Generated(logit_BLV.detach().argmax(-1), vector_BLD, logit_BLV)

    def is_new(self, name: str) -> bool:
        return not name.startswith("network.")

    def of_network(self, teacher: Backbone) -> dict[str, Tensor]:
        """The teacher's state without its head, by our names."""
        head = f"{teacher.official.head}."
        state = teacher.state_dict().items()
        return {f"network.{name}": value for name, value in state if not name.startswith(head)}
