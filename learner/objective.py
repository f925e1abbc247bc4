"""The contract of a distillation objective.

An objective is its own frozen config and callable on a chunk of tokens; which tokens count, and
how much, it says beforehand for a whole batch. Everything else (chunking, denominators across
micro-batches and ranks) is shared.

What needs more than one token at a time has three ways to get it, and each stays exact under any
split into chunks, micro-batches and ranks:

- numbers from the whole sequence or batch (returns, a median) are computed in `token_weights`,
  where whole sequences and all ranks are at hand, and come back per token in `TokenChunk.column`;
- tokens that must be compared with one another share a group, and groups are never cut;
- numbers from step to step live in an `ObjectiveState`, fed by `diagnostics` and `update_state`.

Shape letters: B sequences, L slots, N tokens of a chunk, V codes, X contexts.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor

from common.config.plugins import PluginConfig
from common.errors import InputError
from common.exchange.provenance import TEACHER, Policy, is_on_policy
from common.exchange.trajectory import TrajectoryBatch
from learner.divergence import Divergence, filled
from learner.process_group import ProcessGroup
from learner.relaxation import ClusterMap, RelaxationConfig
from learner.token_weights import ObjectiveState, TokenWeights


@dataclass(frozen=True, slots=True)
class TokenChunk:
    """Tokens of one policy: codes, log-probabilities of student (with gradient) and teacher."""

    policy: Policy
    """Who sampled them; objectives never see the name of a context."""
    token_N: Tensor
    student_NV: Tensor
    teacher_NV: Tensor | None
    clusters: ClusterMap | None
    column: Mapping[str, Tensor] = field(default_factory=dict)
    """The objective's own numbers per token, from `TokenWeights.column`."""
    groups: tuple[int, ...] = ()
    """Sizes of the groups in this chunk, in order, where the objective asked for groups."""

    def only(self, index_n: Tensor) -> "TokenChunk":
        """Some of the tokens; groups don't survive that."""
        teacher_nV = None if self.teacher_NV is None else self.teacher_NV[index_n]
        column = {name: value[index_n] for name, value in self.column.items()}
        student_nV, token_n = self.student_NV[index_n], self.token_N[index_n]
        return TokenChunk(self.policy, token_n, student_nV, teacher_nV, self.clusters, column)

    @property
    def is_on_policy(self) -> bool:
        """Whether the student sampled them."""
        return is_on_policy(self.policy)

    @property
    def required_teacher_NV(self) -> Tensor:
        if self.teacher_NV is None:
            raise ValueError("this objective needs scored records; send them to the teacher first")
        return self.teacher_NV

    @property
    def student_token_N(self) -> Tensor:
        """log q of the sequence's own codes, with gradient."""
        return self.student_NV.gather(-1, self.token_N[:, None])[:, 0]


class ObjectiveConfig(PluginConfig, ABC):
    needs_teacher: ClassVar[bool] = True
    uses_data: ClassVar[bool] = True
    """Whether sequences of data and of the teacher have a loss."""
    uses_rollouts: ClassVar[bool] = True
    """Whether the student's samples have a loss."""
    columns: ClassVar[tuple[str, ...]] = ()
    """Names in `TokenChunk.column`."""
    diagnosed: ClassVar[tuple[str, ...]] = ()
    """Names that `diagnostics` may return."""

    reduction: Literal["suffix_mean", "seq_mean", "weight_norm"] = "suffix_mean"
    """Divide by all suffix tokens, by each sequence's, or by the sum of weights (method.md 2.5)."""

    @model_validator(mode="before")
    @classmethod
    def _keep_defaults_of_divergences(cls, values: Any) -> Any:
        """divergence.alpha=0.2 alone changes no name: the objective's own default stays."""
        if not isinstance(values, dict):
            return values
        own = {n: f.default for n, f in cls.model_fields.items()}
        own = {n: default for n, default in own.items() if isinstance(default, Divergence)}
        return values | {n: filled(default, values.get(n)) for n, default in own.items()}

    def relaxation_config(self) -> RelaxationConfig | None:
        """Which cluster map the objective wants to find in its chunks."""
        return None

    def reads(self) -> frozenset[str]:
        """Quantities of learner/teacher_targets.py that `token_weights` wants in batch.signal."""
        return frozenset()

    def check(self, shares: Mapping[Policy, float]) -> None:
        """Refuse a mixture of contexts (probability by policy) that the objective can't use.

        Raises:
            InputError: no context has a loss, or the mixture defeats the objective.
        """
        used = [policy for policy, share in shares.items() if share and self._uses(policy)]
        if not used:
            kind = "data or teacher sequences" if self.uses_data else "rollouts"
            raise InputError(
                f"objective.kind={self.kind} learns from {kind} only, but contexts.sources has "
                f"{', '.join(p for p, share in shares.items() if share)}; add such a source"
            )
        if "behaviour" in self.columns and shares.get(TEACHER):
            raise InputError(
                f"objective.kind={self.kind} corrects by the probability with which the student "
                "itself drew a code, but one of contexts.sources holds samples of the teacher; "
                "drop that source, or choose another objective"
            )

    def _uses(self, policy: Policy) -> bool:
        return self.uses_rollouts if is_on_policy(policy) else self.uses_data

    def token_weights(
        self, batch: TrajectoryBatch, state: ObjectiveState, ranks: ProcessGroup
    ) -> TokenWeights:
        """Weight of every token, from this rank's share of the step and what all ranks know."""
        support_BL = self.support(batch)
        return TokenWeights(support_BL.float(), support_BL, support_BL)

    def support(self, batch: TrajectoryBatch) -> Tensor:
        """Slots with a loss: all of a data row, the suffix of any other."""
        used_B = batch.rows_where(self._uses)
        return (batch.suffix_BL | batch.data_B[:, None]) & used_B[:, None]

    @abstractmethod
    def __call__(self, chunk: TokenChunk) -> Tensor:
        """Unweighted loss_N of the chunk's tokens."""

    def diagnostics(self, chunk: TokenChunk) -> dict[str, Tensor]:
        """Numbers of each token to plot and to remember; of rollouts or data, or of both.

        Called without gradient, on every eighth token alone (learner/gathered_tokens.py).
        """
        return {}

    def update_state(self, state: ObjectiveState, mean: Mapping[str, float]) -> None:
        """After a step with rollouts: means over their tokens and all ranks.

        Of `divergence` and `student_entropy`, and of what was observed.
        """


def coefficients(
    reduction: str,
    token_weights: TokenWeights,
    contexts: tuple[str, ...],
    known: tuple[str, ...],
    sum_over_ranks: Callable[[Tensor], Tensor],
) -> Tensor:
    """coefficient_BL such that the sum of coefficient * loss over all ranks is the step's loss.

    Each context is reduced by itself and weighted by its share of the rows, so that a batch that
    mixes contexts has the expectation of step-wise mixing. Denominators are global: they cover
    all micro-batches and ranks.
    """
    weight_BL, support_BL = token_weights.weight_BL, token_weights.support_BL
    context_B = torch.tensor([known.index(name) for name in contexts], device=weight_BL.device)
    member_BX = torch.nn.functional.one_hot(context_B, len(known)).double()
    per_row = torch.stack(
        [
            torch.ones_like(context_B, dtype=torch.double),
            support_BL.sum(1).double(),
            weight_BL.sum(1).double(),
        ],
        dim=1,
    )
    total_X3 = sum_over_ranks(member_BX.T @ per_row)
    share_X = total_X3[:, 0] / total_X3[:, 0].sum()
    if reduction == "seq_mean":
        scale_B = 1 / (support_BL.sum(1).clamp_min(1) * total_X3[:, 0].sum())
    elif reduction == "weight_norm":
        scale_B = (share_X / total_X3[:, 2].clamp_min(1e-8))[context_B]
    else:
        scale_B = (share_X / total_X3[:, 1].clamp_min(1))[context_B]
    return weight_BL * scale_B[:, None].to(weight_BL.dtype)
