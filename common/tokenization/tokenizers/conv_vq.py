"""A small convolutional VQ tokenizer that trains on one CPU core in minutes.

Encoder and decoder work at the tokens' resolution: pixels are folded into channels, so that no
convolution runs over the full image. Both are an affine map of each patch plus a residual network
that sees its neighbours. `fit` sets the maps to the patches' principal components and the codes to
k-means in that space, with networks that start at zero: training starts at what `patch_kmeans`
reaches and a codebook that is in use. Quantiser and losses: VQ-VAE, arXiv 1711.00937, section 3.

Shape letters: B batch, C channels, H height, W width, h and w latent sides, L slots, V codes,
D code width, P numbers of a patch, n latent vectors, k chosen codes.
"""

from collections.abc import Iterator
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from common.config.quantities import Count, Depth, Side, Vocabulary, Weight, Width
from common.errors import InputError
from common.spec import SequenceSpec
from common.tokenization.codebook import Codebook
from common.tokenization.conv import GROUPS, ResidualBlock
from common.tokenization.conv_autoencoder import normalise
from common.tokenization.subsample import draw_rows
from common.tokenization.tokenizer import (
    Reconstruction,
    TrainableTokenizer,
    TrainableTokenizerConfig,
)

VECTORS_AT_ONCE = 2**15
"""Bounds the memory of `encode` and `decode`: 64 MiB of distances to 512 codes."""


class Config(TrainableTokenizerConfig):
    patch: Side = 4
    """Pixels per token and side; must divide the image's side."""
    width: Annotated[Width, Field(multiple_of=GROUPS)] = 64
    """Channels of encoder and decoder, which work at the tokens' resolution."""
    res_blocks: Depth = 2
    """Residual blocks of the encoder, and of the decoder."""
    code_width: Width = 16
    """Numbers per code vector, at most those of a patch."""
    vocab_size: Vocabulary = 512
    """Code vectors."""
    l2_norm: bool = False
    """Compare directions only, as LlamaGen; the start then loses the patches' contrast."""
    commitment: Weight = 0.25
    """Training: weight of the term that draws latents to their codes."""
    fit_patches: Count = 200_000
    """Patches that principal components and k-means see, drawn at random from all images."""

    def describe(self, size: int) -> SequenceSpec:
        if size % self.patch:
            raise InputError(
                f"tokenizer.patch is {self.patch}, but images.size {size} is no multiple of it"
            )
        side = size // self.patch
        return SequenceSpec(self.vocab_size, side * side, (side, side), 0)

    def build(self, *, size: int, channels: int) -> "ConvVQ":
        numbers = channels * self.patch**2
        if self.code_width > numbers:
            raise InputError(
                f"tokenizer.code_width is {self.code_width}, but a patch has only {numbers} "
                "numbers; lower it or raise tokenizer.patch"
            )
        return ConvVQ(self, size=size, channels=channels)

    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> "ConvVQ":
        """The start of training.

        Raises:
            InputError: the images have fewer different patches than there are codes.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = self.build(size=size, channels=channels)
        folded = (F.pixel_unshuffle(normalise(batch), self.patch) for batch in batches)
        patch_nP = draw_rows((_vectors(batch) for batch in folded), self.fit_patches, seed)
        tokenizer.start_from(patch_nP, seed)
        return tokenizer.eval()


class ResidualMap(nn.Module):
    """An affine map of every cell plus a network that sees its surroundings."""

    def __init__(self, numbers_in: int, width: int, blocks: int, numbers: int) -> None:
        super().__init__()
        self.affine = nn.Conv2d(numbers_in, numbers, 1)
        self.conv_in = nn.Conv2d(numbers_in, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width, width) for _ in range(blocks)))
        self.norm = nn.GroupNorm(GROUPS, width, eps=1e-6)
        self.conv_out = nn.Conv2d(width, numbers, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(cast(Tensor, self.conv_out.bias))

    def forward(self, x_BChw: Tensor) -> Tensor:
        h_BChw = self.blocks(self.conv_in(x_BChw))
        return self.affine(x_BChw) + self.conv_out(F.silu(self.norm(h_BChw)))

    @torch.no_grad()
    def set_affine(self, weight_oi: Tensor, bias_o: Tensor) -> None:
        self.affine.weight.copy_(weight_oi[:, :, None, None])
        cast(Tensor, self.affine.bias).copy_(bias_o)


class ConvVQ(TrainableTokenizer):
    def __init__(self, config: Config, *, size: int, channels: int) -> None:
        super().__init__()
        self.shape = config.describe(size)
        self._patch, self._commitment = config.patch, config.commitment
        self.images_at_once = max(1, VECTORS_AT_ONCE // self.shape.length)
        numbers, width, blocks = channels * config.patch**2, config.width, config.res_blocks
        self.encoder = ResidualMap(numbers, width, blocks, config.code_width)
        self.quantize = Codebook(config.vocab_size, config.code_width, l2_norm=config.l2_norm)
        self.decoder = ResidualMap(config.code_width, width, blocks, numbers)

    @property
    def codebook_VD(self) -> Tensor:
        return self.quantize.code_VD.detach()

    def latent(self, image_BCHW: Tensor) -> Tensor:
        """vector_nD of images in [-1, 1], one per token, as the codebook compares them."""
        latent_BDhw = self.encoder(F.pixel_unshuffle(image_BCHW, self._patch))
        return self.quantize.direction(_vectors(latent_BDhw))

    def render(self, vector_nD: Tensor) -> Tensor:
        """Code vectors to image_BCHW, nominally in [-1, 1] but not clamped."""
        cell_BhwD = vector_nD.view(-1, *self.shape.grid, vector_nD.shape[-1])
        return F.pixel_shuffle(self.decoder(cell_BhwD.permute(0, 3, 1, 2)), self._patch)

    @torch.no_grad()
    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        parts = [
            self.quantize.distance(self.latent(normalise(part))).argmin(1)
            for part in pixel_BCHW.split(self.images_at_once)
        ]
        return torch.cat(parts).view(len(pixel_BCHW), -1)

    def image(self, token_BL: Tensor) -> Tensor:
        return self.render(self.quantize.code_VD[token_BL.flatten()])

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        return self.render(vector_BLD.flatten(0, 1))

    def reconstruct(self, image_BCHW: Tensor) -> Reconstruction:
        found = self.quantize(self.latent(image_BCHW))
        return Reconstruction(
            self.render(found.through_nD),
            found.token_n.view(len(image_BCHW), -1),
            found.vector_nD.detach(),
            found.codebook_loss,
            self._commitment * found.commitment_loss,
        )

    @torch.no_grad()
    def place_codes(self, token_k: Tensor, vector_kD: Tensor) -> None:
        self.quantize.embedding.weight[token_k] = vector_kD

    @torch.no_grad()
    def start_from(self, patch_nP: Tensor, seed: int) -> None:
        """Principal components of patches as the affine maps, k-means of what they give as codes.

        Raises:
            InputError: there are fewer different patches than codes.
        """
        from sklearn.cluster import MiniBatchKMeans  # a second of imports, for this alone

        vocab_size, code_width = self.quantize.embedding.weight.shape
        distinct = len(torch.unique(patch_nP, dim=0))
        if distinct < vocab_size:
            raise InputError(
                f"tokenizer.vocab_size is {vocab_size}, but the images have only {distinct} "
                "different patches; lower it"
            )
        mean_P = patch_nP.mean(0)
        centred_nP = (patch_nP - mean_P).double()
        _, axis_PP = torch.linalg.eigh(centred_nP.T @ centred_nP)  # eigenvalues ascend
        axis_PD = axis_PP[:, -code_width:].float()
        self.encoder.set_affine(axis_PD.T, -mean_P @ axis_PD)
        self.decoder.set_affine(axis_PD, mean_P)
        vector_nD = self.quantize.direction((patch_nP - mean_P) @ axis_PD)
        clustering = MiniBatchKMeans(
            vocab_size, random_state=seed, n_init=cast(Any, 3), batch_size=4096, max_iter=50
        )
        clustering.fit(vector_nD.numpy())
        self.quantize.embedding.weight.copy_(torch.from_numpy(clustering.cluster_centers_))


def _vectors(cell_BDhw: Tensor) -> Tensor:
    """A row vector_nD per cell."""
    return cell_BDhw.permute(0, 2, 3, 1).flatten(0, 2)
