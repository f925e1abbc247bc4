"""Square patches quantised by k-means: a tokenizer that fits in seconds on a laptop.

No network: each patch becomes its nearest centroid (Euclidean), decoding pastes centroids.

Shape letters: B batch, C channels, H height, W width, L slots, V codes, D = C * patch * patch.
"""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from common.config.quantities import Count, Side, Vocabulary
from common.errors import InputError
from common.spec import SequenceSpec
from common.tokenization.subsample import draw_rows
from common.tokenization.tokenizer import Tokenizer, TokenizerConfig


class Config(TokenizerConfig):
    patch: Side = 2
    """Side of a patch in pixels; must divide the image's side."""
    vocab_size: Vocabulary = 128
    """Number of centroids."""
    fit_patches: Count = 200_000
    """Patches that k-means sees, drawn at random from all images."""

    def describe(self, size: int) -> SequenceSpec:
        if size % self.patch:
            raise InputError(
                f"tokenizer.patch is {self.patch}, but images.size {size} is no multiple of it"
            )
        side = size // self.patch
        return SequenceSpec(self.vocab_size, side * side, (side, side), 0)

    def build(self, *, size: int, channels: int) -> Tokenizer:
        return PatchKMeans(self, size=size, channels=channels)

    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        from sklearn.cluster import MiniBatchKMeans  # a second of imports, for this alone

        tokenizer = PatchKMeans(self, size=size, channels=channels)
        patches = (tokenizer.patches(batch).flatten(0, 1) for batch in batches)
        sample_ND = draw_rows(patches, self.fit_patches, seed)
        distinct = len(torch.unique(sample_ND, dim=0))
        if distinct < self.vocab_size:
            raise InputError(
                f"tokenizer.vocab_size is {self.vocab_size}, but the images have only {distinct} "
                "different patches; lower it"
            )
        clustering = MiniBatchKMeans(
            self.vocab_size, random_state=seed, n_init=cast(Any, 3), batch_size=4096, max_iter=50
        )
        clustering.fit(sample_ND.numpy())
        tokenizer.code_VD.copy_(torch.from_numpy(clustering.cluster_centers_))
        return tokenizer


class PatchKMeans(Tokenizer):
    """Codes live in [-1, 1] like normalised pixels."""

    code_VD: Tensor

    def __init__(self, config: Config, *, size: int, channels: int) -> None:
        super().__init__()
        self.shape = config.describe(size)
        self._patch = config.patch
        self._size = size
        width = channels * config.patch**2
        self.register_buffer("code_VD", torch.zeros(config.vocab_size, width))

    @property
    def codebook_VD(self) -> Tensor:
        return self.code_VD

    def patches(self, pixel_BCHW: Tensor) -> Tensor:
        """uint8 images to patch_BLD in [-1, 1]."""
        scaled = pixel_BCHW.float() / 127.5 - 1
        return F.unfold(scaled, self._patch, stride=self._patch).transpose(1, 2)

    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        return torch.cdist(self.patches(pixel_BCHW), self.code_VD[None]).argmin(-1)

    def image(self, token_BL: Tensor) -> Tensor:
        return self.image_of(self.code_VD[token_BL])

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        patch_BDL = vector_BLD.transpose(1, 2)
        return F.fold(patch_BDL, (self._size, self._size), self._patch, stride=self._patch)
