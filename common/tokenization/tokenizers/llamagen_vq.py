"""LlamaGen's image tokenizer, VQ-16 and VQ-8 (arXiv 2406.06525; docs/backbones.md, "LlamaGen
tokenizer").

A convolutional autoencoder whose latent vectors are quantised by direction: latents and codes are
l2-normalised, so the nearest code is the one with the largest cosine. Parameter names are the
official ones.

Shape letters: B batch, C channels, H height, W width, h and w latent sides, L slots, V codes,
D code width, n latent vectors.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Weight, Width
from common.errors import InputError
from common.files.loading import ignoring
from common.spec import SequenceSpec
from common.tokenization.codebook import Codebook
from common.tokenization.conv import ConvSizes
from common.tokenization.conv_autoencoder import ConvTokenizer, ConvTokenizerConfig
from common.tokenization.tokenizer import Reconstruction, Tokenizer

_BOTH = {"base": 128, "res_blocks": 2, "z_channels": 256, "code_width": 8, "vocab_size": 16384}
PRESETS: dict[str, dict[str, Any]] = {
    "VQ-16": {**_BOTH, "ch_mult": [1, 1, 2, 2, 4]},
    "VQ-8": {**_BOTH, "ch_mult": [1, 2, 2, 4]},
}
"""Published sizes; the number is the pixels per token and side."""
TEMPERATURE = 0.01
"""Of the entropy term's soft assignment."""


class Config(ConvTokenizerConfig):
    preset: Literal["VQ-16", "VQ-8"] | None = None
    """Published sizes: vq_ds16_c2i.pt is VQ-16, vq_ds8_c2i.pt is VQ-8."""
    code_width: Width = 8
    """Numbers per code vector."""
    l2_norm: bool = True
    """Normalise latents and codes, as published."""
    commitment: Weight = 0.25
    """Training: weight of the term that draws latents to their codes."""
    entropy: Weight = 0.0
    """Training: weight of the term that spreads images over the codes; 0 as published."""

    presets = PRESETS
    signature: ClassVar[str] = "encoder.mid.1.q."
    published: ClassVar[str] = "vq_ds16_c2i.pt or vq_ds8_c2i.pt"

    @property
    def sizes(self) -> ConvSizes:
        return ConvSizes(self.base, self.ch_mult, self.res_blocks, self.z_channels)

    def rename(self, name: str) -> str | None:
        return ignoring("quantize.codebook_used")(name)  # a tally without effect

    def describe(self, size: int) -> SequenceSpec:
        step = self.sizes.downsampling
        if size % step:
            raise InputError(
                f"images.size {size} is no multiple of {step}, the pixels per token of "
                f"tokenizer.ch_mult {self.ch_mult}; change one of them"
            )
        side = size // step
        return SequenceSpec(self.vocab_size, side * side, (side, side), 0)

    def build(self, *, size: int, channels: int) -> Tokenizer:
        return LlamaGenVQ(self, size=size)


@dataclass(frozen=True, slots=True)
class RegularisedReconstruction(Reconstruction):
    """With LlamaGen's further term, weighted."""

    entropy_loss: Tensor


class LlamaGenVQ(ConvTokenizer):
    def __init__(self, config: Config, *, size: int) -> None:
        super().__init__(config, size=size, code_width=config.code_width, kernel=1)
        self.quantize = Codebook(config.vocab_size, config.code_width, l2_norm=config.l2_norm)
        self._commitment = config.commitment
        self._entropy = config.entropy

    @property
    def codebook_VD(self) -> Tensor:
        return self.quantize.code_VD.detach()

    def quantise(self, latent_BDhw: Tensor) -> Tensor:
        vector_nD = self._vectors(latent_BDhw)
        return self.quantize.distance(vector_nD).argmin(1).view(len(latent_BDhw), -1)

    def embed(self, token_BL: Tensor) -> Tensor:
        code_BLD = F.embedding(token_BL, self.quantize.code_VD)
        return code_BLD.transpose(1, 2).unflatten(2, self.shape.grid)

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        return self.render(vector_BLD.transpose(1, 2).unflatten(2, self.shape.grid))

    def to_pixels(self, image_BCHW: Tensor) -> Tensor:
        return (image_BCHW * 127.5 + 128).clamp(0, 255).to(torch.uint8)  # truncates

    def reconstruct(self, image_BCHW: Tensor) -> RegularisedReconstruction:
        """Encode, quantise and decode images in [-1, 1], with gradients straight through."""
        latent_BDhw = self.latent(image_BCHW)
        found = self.quantize(self._vectors(latent_BDhw))
        distance_nV = found.distance_nV
        entropy = entropy_loss(distance_nV) if self._entropy else distance_nV.new_zeros(())
        batch, _, *grid = latent_BDhw.shape
        through_BDhw = found.through_nD.view(batch, *grid, -1).permute(0, 3, 1, 2)
        return RegularisedReconstruction(
            self.render(through_BDhw),
            found.token_n.view(batch, -1),
            found.vector_nD.detach(),
            found.codebook_loss,
            self._commitment * found.commitment_loss,
            self._entropy * entropy,
        )

    def _vectors(self, latent_BDhw: Tensor) -> Tensor:
        return self.quantize.direction(latent_BDhw.permute(0, 2, 3, 1).flatten(0, 2))


def entropy_loss(distance_nV: Tensor) -> Tensor:
    """Low where each vector is sure of its code and all codes are used (MaskGIT's regulariser).

    The mean entropy of the soft assignments less the entropy of their mean, as LlamaGen computes
    it.
    """
    affinity_nV = -distance_nV / TEMPERATURE
    share_nV = affinity_nV.softmax(-1)
    sample_entropy = -(share_nV * affinity_nV.log_softmax(-1)).sum(-1).mean()
    share_V = share_nV.mean(0)
    return sample_entropy + (share_V * (share_V + 1e-5).log()).sum()
