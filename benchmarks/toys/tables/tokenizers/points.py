"""Codes alone: an image is the row of its code vectors, which nobody looks at.

Shape letters: B images, L slots, V codes, D code width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.config.quantities import Side, Tokens, Vocabulary
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer, TokenizerConfig


class Config(TokenizerConfig):
    vocab_size: Vocabulary
    """V."""
    length: Tokens
    """L."""
    width: Side
    """D."""

    def describe(self, size: int) -> SequenceSpec:
        return SequenceSpec(self.vocab_size, self.length, (1, self.length), 0)

    def build(self, *, size: int, channels: int) -> Tokenizer:
        return Points(self)

    def fit(self, batches: Iterator[Tensor], *, size: int, channels: int, seed: int) -> Tokenizer:
        raise NotImplementedError("the codes are given")


class Points(Tokenizer):
    code_VD: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.shape = config.describe(1)
        self.register_buffer("code_VD", torch.zeros(config.vocab_size, config.width))

    @property
    def codebook_VD(self) -> Tensor:
        return self.code_VD

    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        raise NotImplementedError("there are no images")

    def image(self, token_BL: Tensor) -> Tensor:
        return self.image_of(self.code_VD[token_BL])

    def image_of(self, vector_BLD: Tensor) -> Tensor:
        return vector_BLD[:, None]
