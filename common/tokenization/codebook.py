"""A learned codebook and the straight-through step over it (VQ-VAE, arXiv 1711.00937, section 3).

Shape letters: V codes, D code width, n latent vectors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Quantised:
    """Vectors and the codes nearest to them; both losses are means over numbers, unweighted."""

    vector_nD: Tensor
    token_n: Tensor
    through_nD: Tensor
    """The codes, with the gradient handed to the vectors as it is."""
    distance_nV: Tensor
    codebook_loss: Tensor
    """Draws codes to their vectors."""
    commitment_loss: Tensor
    """Draws vectors to their codes."""


class Codebook(nn.Module):
    def __init__(self, vocab_size: int, code_width: int, *, l2_norm: bool) -> None:
        """`l2_norm`: vectors and codes are directions (LlamaGen, docs/backbones.md, "LlamaGen
        tokenizer")."""
        super().__init__()
        self.l2_norm = l2_norm
        self.embedding = nn.Embedding(vocab_size, code_width)
        with torch.no_grad():
            weight_VD = self.embedding.weight
            weight_VD.uniform_(-1 / vocab_size, 1 / vocab_size)
            weight_VD.copy_(self.direction(weight_VD))

    @property
    def code_VD(self) -> Tensor:
        """What decoding uses: stored vectors need not be of unit length."""
        return self.direction(self.embedding.weight)

    def direction(self, vector: Tensor) -> Tensor:
        """Unit vectors along the last dimension, where the codebook is one of directions."""
        return F.normalize(vector, dim=-1) if self.l2_norm else vector

    def distance(self, vector_nD: Tensor) -> Tensor:
        """Squared distance_nV to every code."""
        code_VD = self.code_VD
        squares_nV = vector_nD.square().sum(1, keepdim=True) + code_VD.square().sum(1)
        return squares_nV - 2 * vector_nD @ code_VD.T

    def forward(self, vector_nD: Tensor) -> Quantised:
        distance_nV = self.distance(vector_nD)
        token_n = distance_nV.argmin(1)
        code_nD = F.embedding(token_n, self.code_VD)
        return Quantised(
            vector_nD,
            token_n,
            vector_nD + (code_nD - vector_nD).detach(),
            distance_nV,
            F.mse_loss(code_nD, vector_nD.detach()),
            F.mse_loss(vector_nD, code_nD.detach()),
        )
