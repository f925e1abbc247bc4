"""The contract of a one-pass student: (condition, noise seed) to a whole sequence.

A `Backbone` decodes step by step and its randomness is one uniform per slot; a `Generator` maps
Gaussian noise, one vector per slot, to tokens, embeddings and logits at once (Distilled Decoding,
arXiv 2412.17153, section 3; K-Forcing is of the same shape). It knows no plan: slots are in the
tokenizer's order. Noise is a function of the seed, so records store seeds and never noise.

Shape letters: B sequences, L slots, D code width, V codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.config.plugins import PluginConfig
from common.randomness import derive_seed
from common.spec import SequenceSpec


@dataclass(frozen=True, slots=True)
class Generated:
    """One pass, with gradient where the pass had one."""

    token_BL: Tensor
    """The likeliest code of every slot, int64; without gradient."""
    vector_BLD: Tensor
    """The code vector that the student means, not snapped to any code: what a tokenizer's decoder
    turns into pixels."""
    logit_BLV: Tensor
    """Of the codes; float32, not normalised."""


def gaussian(seeds: Sequence[int], length: int, width: int) -> Tensor:
    """noise_BLD, float32 N(0, 1) on the CPU: every row from its own seed alone.

    Whoever wants another precision rounds afterwards, so that all have rounded the same numbers.
    """
    generator = torch.Generator()
    rows = [
        torch.randn(length, width, generator=generator.manual_seed(derive_seed(seed, "gaussian")))
        for seed in seeds
    ]
    return torch.stack(rows)


class Generator(nn.Module, ABC):
    """Maps every row by itself: neither company nor order of a batch changes what it makes of it.

    Pure: the same weights, condition and noise give the same numbers on one device; what is drawn
    in training (dropout) comes from torch's own generators.
    """

    spec: SequenceSpec
    """The tokens that it makes, and how many classes it knows."""
    code_width: int
    """D of noise and vectors: that of the tokenizer's codes."""
    codebook_VD: Tensor
    """The codes, float32: a part of the state."""

    @abstractmethod
    def forward(self, label_B: Tensor, noise_BLD: Tensor) -> Generated:
        """Classes (the null class too) and noise, on the weights' device, to whole sequences."""

    def generate(self, label_B: Tensor, seeds: Sequence[int]) -> Generated:
        """`forward` on the noise of these seeds, one for each row."""
        noise_BLD = gaussian(seeds, self.spec.length, self.code_width)
        return self(label_B, noise_BLD.to(label_B.device))


class GeneratorConfig(PluginConfig, ABC):
    """Sizes of a generator."""

    @abstractmethod
    def build(self, spec: SequenceSpec, codebook_VD: Tensor) -> Generator:
        """Fresh weights, from torch's own generator, for the tokens of `spec` with these codes;
        the codes are part of its state, so that a file of it stands alone."""

    @classmethod
    @abstractmethod
    def tiny(cls) -> "GeneratorConfig":
        """The smallest useful size, for contract tests."""
