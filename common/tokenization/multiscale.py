"""What tokenizers of several scales have in common: one residual quantiser makes their tokens, and
a next-scale transformer borrows it (common/models/residual_quantizer.py).

Shape letters: V codes, D code width.
"""

from collections.abc import Mapping
from itertools import pairwise

from torch import Tensor, nn

from common.errors import InputError
from common.models.residual_quantizer import ResidualQuantizer
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer

MOST_TOKENS = 2**20
"""Tokens of a multi-scale image; published ones have 680 and 2,240."""


class MultiscaleTokenizer(Tokenizer):
    """Its tokens are those of one residual quantiser."""

    quantize: ResidualQuantizer

    def lent(self) -> Mapping[str, nn.Module]:
        return {"quantizer": self.quantize}

    @property
    def codebook_VD(self) -> Tensor:
        return self.quantize.code_VD


def multiscale_shape(vocab_size: int, scales: tuple[int, ...]) -> SequenceSpec:
    """Square token maps of the sides `scales`, coarse to fine (0 classes); sides may repeat.

    Raises:
        InputError: a side is smaller than the one before, or there are too many tokens.
    """
    if not scales or any(coarse > fine for coarse, fine in pairwise(scales)):
        raise InputError(
            f"tokenizer.scales is {list(scales)}; no side may be smaller than the one before"
        )
    length = sum(side**2 for side in scales)
    if length > MOST_TOKENS:
        raise InputError(
            f"tokenizer.scales make {length} tokens per image, more than {MOST_TOKENS}; lower them"
        )
    return SequenceSpec(vocab_size, length, (scales[-1], scales[-1]), 0, scales)
