"""One affine map per slot, from its own noise and the class: the least that is a generator.

Slots know nothing of each other, so it can learn each slot's distribution by itself and no joint
one (the independent decoder that Distilled Decoding, arXiv 2412.17153, is compared with). Here to
fill the contract; methods bring their own kinds.

Shape letters: B sequences, L slots, D code width, V codes, K classes.
"""

import torch
from torch import Tensor, nn

from common.config.quantities import Factor
from common.models.generator import Generated, Generator, GeneratorConfig
from common.spec import SequenceSpec


class Config(GeneratorConfig):
    sharpness: Factor = 1.0
    """Divides squared distances to the codes before they become logits, as a variance does."""

    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> "Linear":
        return Linear(self, spec, codebook_VD)

    @classmethod
    def tiny(cls) -> "Config":
        return cls()


class Linear(Generator):
    """vector = map_l noise + shift_l + class; logit_j = -|vector - code_j|^2 / (2 sharpness)."""

    def __init__(self, config: Config, spec: SequenceSpec, codebook_VD: Tensor) -> None:
        super().__init__()
        self.spec = spec
        self.code_width = width = codebook_VD.shape[1]
        self._sharpness = config.sharpness
        self.register_buffer("codebook_VD", codebook_VD.detach().clone().float())
        self.map_LDD = nn.Parameter(torch.randn(spec.length, width, width) / width**0.5)
        self.shift_LD = nn.Parameter(torch.zeros(spec.length, width))
        self.condition = nn.Embedding(spec.num_classes + 1, width)

    def forward(self, label_B: Tensor, noise_BLD: Tensor) -> Generated:
        moved_BLD = torch.einsum("bld,lde->ble", noise_BLD, self.map_LDD)
        vector_BLD = moved_BLD + self.shift_LD + self.condition(label_B)[:, None]
        # |vector|^2 is the same for all codes and drops out of the softmax.
        norm_V = self.codebook_VD.square().sum(-1)
        logit_BLV = (vector_BLD @ self.codebook_VD.T - norm_V / 2) / self._sharpness
        return Generated(logit_BLV.detach().argmax(-1), vector_BLD, logit_BLV.float())
