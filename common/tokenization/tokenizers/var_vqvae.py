"""VAR's multi-scale image tokenizer (arXiv 2404.02905; docs/backbones.md, "VAR tokenizer").

The convolutional autoencoder of VQGAN around common/models/residual_quantizer.py. Official names
are mapped on reading: VAR counts the decoder's levels by resolution, this module by execution.

Shape letters: B batch, C channels, H height, W width, h and w latent sides, L slots, V codes,
D code width, n latent vectors.
"""

import re
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.quantities import Depth, Side, Vocabulary, Width
from common.errors import InputError
from common.files.loading import load
from common.files.official import Checkpoint
from common.models.residual_quantizer import ResidualQuantizer
from common.outline import outlines
from common.spec import SequenceSpec
from common.tokenization.conv import GROUPS, ConvSizes
from common.tokenization.conv_autoencoder import ConvTokenizer, ConvTokenizerConfig
from common.tokenization.multiscale import MultiscaleTokenizer, multiscale_shape
from common.tokenization.tokenizer import Tokenizer

RENAMED = {
    "encoder.down.": "encoder.conv_blocks.",
    ".block.": ".res.",
    ".mid.block_1.": ".mid.0.",
    ".mid.attn_1.": ".mid.1.",
    ".mid.block_2.": ".mid.2.",
}
TALLY = "quantize.ema_vocab_hit_SV"
"""How often codes were used: without effect."""


class Config(ConvTokenizerConfig):
    base: Annotated[Width, Field(multiple_of=GROUPS)] = 160
    """Channels at full resolution."""
    z_channels: Width = 32
    """Channels of the latent map, and numbers per code vector."""
    vocab_size: Vocabulary = 4096
    """Code vectors."""
    scales: tuple[Side, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    """Sides of the token maps; images of side 512 use 1, 2, 3, 4, 6, 9, 13, 18, 24, 32."""
    phis: Annotated[Depth, Field(ge=2)] = 4
    """Convolutions that the scales share."""
    using_znorm: bool = False
    """Choose codes by cosine, not by distance."""

    signature: ClassVar[str] = "encoder.mid.attn_1.qkv."
    published: ClassVar[str] = "vae_ch160v4096z32.pth"

    @property
    def sizes(self) -> ConvSizes:
        return ConvSizes(self.base, self.ch_mult, self.res_blocks, self.z_channels, fused_qkv=True)

    def rename(self, name: str) -> str | None:
        if name.startswith("quantize."):
            return None  # see `given`
        for theirs, ours in RENAMED.items():
            name = name.replace(theirs, ours)
        deepest = len(self.ch_mult) - 1
        return re.sub(
            r"^decoder\.up\.(\d+)\.",
            lambda found: f"decoder.conv_blocks.{deepest - int(found[1])}.",
            name,
        )

    def given(self, checkpoint: Checkpoint) -> dict[str, Tensor]:
        """The quantiser's buffers: the codebook, and the convolutions stacked."""
        width = self.z_channels
        with outlines():
            codes = nn.Embedding(self.vocab_size, width)
            phi = nn.ModuleList(nn.Conv2d(width, width, 3) for _ in range(self.phis))
            resi = nn.ModuleDict({"qresi_ls": phi})
            parts = nn.ModuleDict({"embedding": codes, "quant_resi": resi})
            official = nn.ModuleDict({"quantize": parts})

        def rename(name: str) -> str | None:
            return name if name.startswith("quantize.") and name != TALLY else None

        load(official, checkpoint, rename, dtype=torch.float32)
        state = phi.state_dict()
        stacks = {
            f"quantize.phi_{part}": torch.stack([state[f"{p}.{part}"] for p in range(self.phis)])
            for part in ("weight", "bias")
        }
        return {"quantize.code_VD": codes.weight.detach(), **stacks}

    def describe(self, size: int) -> SequenceSpec:
        shape = multiscale_shape(self.vocab_size, self.scales)
        expected = self.scales[-1] * self.sizes.downsampling
        if size != expected:
            raise InputError(
                f"images.size is {size}, but tokenizer.scales ends with {self.scales[-1]} and "
                f"tokenizer.ch_mult {self.ch_mult} makes {self.sizes.downsampling} pixels per "
                f"token: set images.size to {expected} or choose other scales"
            )
        return shape

    def build(self, *, size: int, channels: int) -> Tokenizer:
        return VARVQVAE(self, size=size)


class VARVQVAE(ConvTokenizer, MultiscaleTokenizer):
    def __init__(self, config: Config, *, size: int) -> None:
        super().__init__(config, size=size, code_width=config.z_channels, kernel=3)
        self.quantize = ResidualQuantizer(
            config.vocab_size, config.z_channels, config.scales, phis=config.phis
        )
        self._by_direction = config.using_znorm

    def quantise(self, latent_BDhw: Tensor) -> Tensor:
        nearest = self._nearest_direction if self._by_direction else None
        return self.quantize.quantise(latent_BDhw, nearest)

    def embed(self, token_BL: Tensor) -> Tensor:
        return self.quantize.accumulate(token_BL)

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        return self.render(self.quantize.accumulate_vectors(vector_BLD))

    def to_pixels(self, image_BCHW: Tensor) -> Tensor:
        return ((image_BCHW.clamp(-1, 1) + 1) / 2 * 255).to(torch.uint8)  # truncates

    def _nearest_direction(self, vector_nD: Tensor) -> Tensor:
        code_VD = F.normalize(self.quantize.code_VD, dim=-1)
        return (F.normalize(vector_nD, dim=-1) @ code_VD.T).argmax(1)
