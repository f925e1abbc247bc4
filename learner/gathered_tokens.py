"""The tokens of one context that have a loss, gathered from a batch and cut into chunks.

Shape letters: B sequences, L slots, N selected tokens, W watched ones, n tokens of a chunk,
C width, V codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.exchange.provenance import Policy
from common.exchange.trajectory import TrajectoryBatch
from learner.categorical import Categorical
from learner.objective import TokenChunk
from learner.token_weights import TokenWeights

STRIDE = 8
"""One token in so many is watched: enough for curves of what would be dear for every token."""


@dataclass(frozen=True, slots=True)
class GatheredTokens:
    """Codes, loss coefficients, teacher signal and the objective's columns, each (N, ...)."""

    context: str
    policy: Policy
    at_N: Tensor
    """Place of every token in the flattened batch: row * L + slot."""
    slot_N: Tensor
    watched_W: Tensor
    """Numbers of the watched tokens, rising, on the CPU. Condition and slot alone decide, so every
    slot has its share of them, in the first rows of groups too, and no split changes which they
    are."""
    token_N: Tensor
    coefficient_N: Tensor
    signal: dict[str, Tensor]
    column: dict[str, Tensor]
    group_N: Tensor | None

    def take(self, value_BL: Tensor) -> Tensor:
        """The chosen tokens of anything (B, L, ...), differentiable; far quicker than by a mask."""
        return _take(value_BL, self.at_N)

    def groups(self, tokens: slice = slice(None)) -> tuple[int, ...]:
        """Sizes of the groups among some tokens."""
        if self.group_N is None:
            return ()
        sizes = torch.unique_consecutive(self.group_N[tokens], return_counts=True)[1]
        return tuple(sizes.tolist())

    def watch(self, tokens: slice) -> Tensor:
        """The watched ones among some tokens, counted from the first of these."""
        ends = torch.tensor([tokens.start, tokens.stop])
        first, last = torch.searchsorted(self.watched_W, ends).tolist()
        return (self.watched_W[first:last] - tokens.start).to(self.token_N.device)

    def signal_of(self, tokens: slice) -> dict[str, Tensor]:
        """The teacher's columns of some tokens."""
        return {name: value[tokens] for name, value in self.signal.items()}

    def chunk(self, tokens: slice, student: Categorical, teacher: Categorical | None) -> TokenChunk:
        """What the objective sees of some tokens."""
        column = {name: value[tokens] for name, value in self.column.items()}
        groups = self.groups(tokens)
        return TokenChunk(self.policy, self.token_N[tokens], student, teacher, column, groups)


def select(
    source: tuple[str, Policy],
    batch: TrajectoryBatch,
    token_weights: TokenWeights,
    coefficient_BL: Tensor,
) -> GatheredTokens:
    """Tokens of `source`, a (context, policy), whose coefficient is not 0, in order of sequence and
    slot."""
    member_B = torch.tensor([found == source for found in batch.sources])
    active_BL = (coefficient_BL != 0) & member_B.to(coefficient_BL.device)[:, None]
    at_N = active_BL.flatten().nonzero()[:, 0]
    row_N, slot_N = at_N // active_BL.shape[1], at_N % active_BL.shape[1]
    condition_B = batch.id_B if batch.group_B is None else batch.group_B
    watched_N = (condition_B[row_N] + slot_N) % STRIDE == 0
    return GatheredTokens(
        *source,
        at_N,
        slot_N,
        watched_N.nonzero()[:, 0].cpu(),
        _take(batch.token_BL, at_N),
        _take(coefficient_BL, at_N),
        {name: _take(value, at_N) for name, value in batch.signal.items()},
        {name: _take(value, at_N) for name, value in token_weights.column.items()},
        None if token_weights.group_BL is None else _take(token_weights.group_BL, at_N),
    )


def _take(value_BL: Tensor, at_N: Tensor) -> Tensor:
    return value_BL.flatten(0, 1).index_select(0, at_N)
