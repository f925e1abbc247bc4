"""Patches as next-scale tokens: VAR's token structure without a network, fitted on a laptop.

The latent image has one cell per square patch and one channel per number in it. It is quantised
scale by scale with common/models/residual_quantizer.py (arXiv 2404.02905; docs/backbones.md, "VAR
tokenizer") whose convolutions stay the identity; the codebook, one for all scales, comes from
k-means.

Shape letters: N images, B batch, C channels, H height, W width, h latent side, L slots, V codes,
D = C * patch * patch, n residual vectors.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Count, Depth, Side, Vocabulary
from common.errors import InputError
from common.models.residual_quantizer import ResidualQuantizer
from common.spec import SequenceSpec
from common.tokenization.multiscale import MultiscaleTokenizer, multiscale_shape
from common.tokenization.subsample import draw_rows
from common.tokenization.tokenizer import (
    Tokenizer,
    TokenizerConfig,
)

FIT_BATCH = 256
"""Images quantised together while fitting."""


class Config(TokenizerConfig):
    patch: Side = 2
    """Side of a patch in pixels; must divide the image's side."""
    scales: tuple[Side, ...] = (1, 2, 3, 4)
    """Sides of the token maps, coarse to fine; the last is the image's side in patches."""
    vocab_size: Vocabulary = 128
    """Number of centroids, shared by all scales."""
    rounds: Depth = 6
    """Fits of the centroids, each to the residuals that those of the round before leave."""
    fit_vectors: Count = 200_000
    """Residual vectors of all scales that k-means sees, from images drawn at random."""

    def describe(self, size: int) -> SequenceSpec:
        shape = multiscale_shape(self.vocab_size, self.scales)
        if size != self.scales[-1] * self.patch:
            raise InputError(
                f"tokenizer.scales ends with {self.scales[-1]}, but images.size {size} over "
                f"tokenizer.patch {self.patch} gives {size / self.patch:g} patches per side; the "
                "two must be equal"
            )
        return shape

    def build(self, *, size: int, channels: int) -> Tokenizer:
        return MultiscaleKMeans(self, size=size, channels=channels)

    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        tokenizer = MultiscaleKMeans(self, size=size, channels=channels)
        quantize = tokenizer.quantize
        images = max(1, self.fit_vectors // quantize.length)
        latent_NDhh = tokenizer.latent(draw_rows(batches, images, seed))
        # All codes are still zero, so these are the image itself at every scale.
        vector_nD, least = _residuals(quantize, latent_NDhh)
        self._require_variety(vector_nD)
        code_VD, best_VD = None, quantize.code_VD.clone()
        for _ in range(self.rounds):
            code_VD = self._centroids(vector_nD, code_VD, seed)
            quantize.code_VD.copy_(code_VD)
            vector_nD, error = _residuals(quantize, latent_NDhh)
            # New centroids change the residuals that they were fitted to: it can get worse.
            if error < least:
                best_VD, least = code_VD, error
        quantize.code_VD.copy_(best_VD)
        return tokenizer

    def _require_variety(self, vector_nD: Tensor) -> None:
        distinct = len(torch.unique(vector_nD, dim=0))
        if distinct < self.vocab_size:
            raise InputError(
                f"tokenizer.vocab_size is {self.vocab_size}, but the images have only {distinct} "
                "different patches over all scales; lower it"
            )

    def _centroids(self, vector_nD: Tensor, start_VD: Tensor | None, seed: int) -> Tensor:
        """Every vector counts once: finer scales have more of them, and the last decides the error.

        Equal weights per scale cost 0.5 dB on digits with 64 codes.
        """
        from sklearn.cluster import MiniBatchKMeans  # a second of imports, for this alone

        clustering = MiniBatchKMeans(
            self.vocab_size,
            init=cast(Any, "k-means++" if start_VD is None else start_VD.numpy()),
            random_state=seed,
            n_init=cast(Any, 3 if start_VD is None else 1),
            batch_size=4096,
            max_iter=50,
        )
        return torch.from_numpy(clustering.fit(vector_nD.numpy()).cluster_centers_)


class MultiscaleKMeans(MultiscaleTokenizer):
    """Codes are differences of pixels normalised to [-1, 1]."""

    def __init__(self, config: Config, *, size: int, channels: int) -> None:
        super().__init__()
        self.shape = config.describe(size)
        self._patch = config.patch
        width = channels * config.patch**2
        self.quantize = ResidualQuantizer(config.vocab_size, width, config.scales)

    def latent(self, pixel_BCHW: Tensor) -> Tensor:
        """uint8 images to latent_BDhh in [-1, 1]."""
        return F.pixel_unshuffle(pixel_BCHW.float() / 127.5 - 1, self._patch)

    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        return self.quantize.quantise(self.latent(pixel_BCHW))

    def image(self, token_BL: Tensor) -> Tensor:
        return F.pixel_shuffle(self.quantize.accumulate(token_BL), self._patch)

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        return F.pixel_shuffle(self.quantize.accumulate_vectors(vector_BLD), self._patch)


def _residuals(quantize: ResidualQuantizer, latent_NDhh: Tensor) -> tuple[Tensor, float]:
    """vector_nD of all scales that were replaced by codes, and the squared error that is left."""
    seen: list[Tensor] = []

    def nearest(vector_nD: Tensor) -> Tensor:
        seen.append(vector_nD)
        return quantize.nearest(vector_nD)

    error = 0.0
    for latent_BDhh in latent_NDhh.split(FIT_BATCH):
        canvas_BDhh = quantize.accumulate(quantize.quantise(latent_BDhh, nearest))
        error += float((latent_BDhh - canvas_BDhh).square().sum())
    return torch.cat(seen), error
