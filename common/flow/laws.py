"""Distributions over codes, one per slot: what a flow carries noise to.

Shape letters: N slots, V codes, K codes of a slot that are possible (K = V where all are kept),
D code width.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

DISTANCES = 2**24
"""Numbers that the search for the smallest distance holds at once."""


class FlowCodes:
    """A codebook as flows see it; shared by all slots."""

    def __init__(self, code_VD: Tensor) -> None:
        """`code_VD` are the vectors that the tokenizer decodes (not its lookup table, if it has
        another): float32 or float64."""
        self.code_VD = code_VD.detach()
        self.half_norm_V = self.code_VD.square().sum(-1) / 2

    def to(self, device: torch.device) -> "FlowCodes":
        """These codes there; the same object where they are."""
        return self if self.code_VD.device == device else FlowCodes(self.code_VD.to(device))

    @cached_property
    def least_distance(self) -> float:
        """Between two codes that are not the same; in float64."""
        code_VD = self.code_VD.double()
        rows = max(1, DISTANCES // len(code_VD))
        least = torch.inf
        for first in range(0, len(code_VD), rows):
            part_nD = code_VD[first : first + rows]
            distance_nV = torch.cdist(part_nD, code_VD, compute_mode="donot_use_mm_for_euclid_dist")
            others = distance_nV[distance_nV > 0]
            least = min(least, float(others.min()) if len(others) else torch.inf)
        return least

    def law(self, logprob_NV: Tensor) -> "CodeLaw":
        """The codes with these normalised log-probabilities; -inf: never.

        Where few are possible the others are left out, which changes no number but rounding: a code
        of probability 0 has no part in any expectation. A slot's own codes are read number by
        number, shared ones are multiplied all at once; so they are left out where a slot's own
        have fewer numbers than there are codes.
        """
        possible_NV = logprob_NV > -torch.inf
        most = int(possible_NV.sum(-1).max())
        if most * self.code_VD.shape[1] > logprob_NV.shape[-1]:
            return CodeLaw(self, logprob_NV, None)
        logprob_NK, index_NK = logprob_NV.topk(most, dim=-1)
        return CodeLaw(self, logprob_NK, index_NK)


@dataclass(frozen=True)
class CodeLaw:
    """p_j of N slots; rows are independent of each other."""

    codes: FlowCodes
    logprob_NK: Tensor
    index_NK: Tensor | None
    """Which codes the columns are; None: all, in their order."""

    def __len__(self) -> int:
        return len(self.logprob_NK)

    @property
    def numbers(self) -> int:
        """That a slot takes while it is carried: of its codes, where they are its own."""
        width = 1 if self.index_NK is None else self.codes.code_VD.shape[1]
        return self.logprob_NK.shape[1] * width

    @cached_property
    def _own_NKD(self) -> Tensor:
        """The codes of every slot, gathered once for all evaluations."""
        return self.codes.code_VD[self.index_NK]

    def rows(self, rows: slice) -> "CodeLaw":
        """Some slots."""
        index = None if self.index_NK is None else self.index_NK[rows]
        return CodeLaw(self.codes, self.logprob_NK[rows], index)

    @property
    def half_norm_NK(self) -> Tensor:
        """|c_j|^2 / 2 of every column; one row where all slots share the codes."""
        norm_V = self.codes.half_norm_V
        return norm_V[None] if self.index_NK is None else norm_V[self.index_NK]

    def products(self, x_ND: Tensor) -> Tensor:
        """x . c_j of every column."""
        if self.index_NK is None:
            return x_ND @ self.codes.code_VD.T
        return torch.einsum("nd,nkd->nk", x_ND, self._own_NKD)

    def expectation(self, weight_NK: Tensor) -> Tensor:
        """sum_j w_j c_j."""
        if self.index_NK is None:
            return weight_NK @ self.codes.code_VD
        return torch.einsum("nk,nkd->nd", weight_NK, self._own_NKD)

    def token(self, column_N: Tensor) -> Tensor:
        """Code numbers of columns."""
        if self.index_NK is None:
            return column_N
        return self.index_NK.gather(1, column_N[:, None])[:, 0]

    def nearest(self, x_ND: Tensor) -> Tensor:
        """token_N: the nearest of the codes that are possible.

        Among all codes 0.4 % of a solver's results would lie nearest to one that the teacher's
        filters removed (docs/one_step.md, "Solvers").
        """
        closeness_NK = self.products(x_ND) - self.half_norm_NK
        closeness_NK = closeness_NK.masked_fill(self.logprob_NK == -torch.inf, -torch.inf)
        return self.token(closeness_NK.argmax(-1))
