"""A teacher that is a table: three dependent tokens in two classes, so that the joint distribution
of its sequences is known, and the best that slots alone could do.

Shape letters: B sequences, L = 3 slots, N all sequences, D code width, V codes.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from common.flow.laws import FlowCodes
from common.flow.solver import carry
from common.flow.solvers import rk4_rho
from common.spec import SequenceSpec

L, D, CLASSES = 3, 2, 2
AT_ONCE = 2000
"""Sequences that are made together to be counted."""


def looked_up(table: Tensor, label_B: Tensor, token_BL: Tensor) -> Tensor:
    """The row of `table` (classes, V + 1, V + 1, V) for every slot: after its class, the code two
    places before and the code before, where V stands for none."""
    none_B1 = torch.full_like(token_BL[:, :1], table.shape[-1])
    before_BL = torch.cat([none_B1, token_BL[:, :-1]], 1)
    second_BL = torch.cat([none_B1, before_BL[:, :-1]], 1)
    return table[label_B[:, None], second_BL, before_BL]


class Tabular:
    """Logits of a code after the class and the codes before it, drawn once."""

    def __init__(self, codes: int = 8, spread: float = 1.5, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = SequenceSpec(codes, L, (1, L), CLASSES)
        self.codes = FlowCodes(torch.randn(codes, D, generator=generator))
        shape = CLASSES, codes + 1, codes + 1, codes
        self.logprob_table = (spread * torch.randn(shape, generator=generator)).log_softmax(-1)
        self.every_NL = torch.tensor(list(itertools.product(range(codes), repeat=L)))

    def logprob(self, label_B: Tensor, token_BL: Tensor) -> Tensor:
        """logprob_BLV of every code after those before it."""
        return looked_up(self.logprob_table, label_B, token_BL)

    def sample(self, label_B: Tensor, random: torch.Generator) -> Tensor:
        token_BL = torch.zeros(len(label_B), L, dtype=torch.long)
        for slot in range(L):
            p_BV = self.logprob(label_B, token_BL)[:, slot].exp()
            token_BL[:, slot] = p_BV.multinomial(1, generator=random)[:, 0]
        return token_BL

    def carried(self, label_B: Tensor, noise_BLD: Tensor) -> Tensor:
        """token_BL: what the flow carries noise to, slot after slot."""
        token_BL = torch.zeros(len(label_B), L, dtype=torch.long)
        for slot in range(L):
            law = self.codes.law(self.logprob(label_B, token_BL)[:, slot])
            token_BL[:, slot] = carry(rk4_rho.Config(steps=10), law, noise_BLD[:, slot]).token_N
        return token_BL

    def joint(self, label: int) -> Tensor:
        """p_N, float64."""
        label_N = torch.full((len(self.every_NL),), label)
        logprob_NLV = self.logprob(label_N, self.every_NL)
        return logprob_NLV.gather(2, self.every_NL[..., None]).double().sum((1, 2)).exp()

    def distances(self, make: Callable[[Tensor], Tensor], count: int = 20_000) -> list[float]:
        """Total variation of `make(label_B) -> token_BL`, of every class; called with parts."""
        found = []
        for label in range(CLASSES):
            parts = torch.full((count,), label).split(AT_ONCE)
            token_BL = torch.cat([make(label_B) for label_B in parts])
            place_B = torch.zeros(count, dtype=torch.long)
            for slot in range(L):
                place_B = place_B * self.spec.vocab_size + token_BL[:, slot]
            share_N = torch.bincount(place_B, minlength=len(self.every_NL)) / count
            found.append(float((share_N - self.joint(label)).abs().sum() / 2))
        return found

    def independent(self) -> list[float]:
        """The same of the product of the true marginals: the best that slots alone can do."""
        found = []
        for label in range(CLASSES):
            p_N, product_N = self.joint(label), torch.ones(len(self.every_NL)).double()
            for slot in range(L):
                code_N = self.every_NL[:, slot]
                marginal_V = torch.zeros(self.spec.vocab_size).double().index_add_(0, code_N, p_N)
                product_N *= marginal_V[code_N]
            found.append(float((product_N - p_N).abs().sum() / 2))
        return found
