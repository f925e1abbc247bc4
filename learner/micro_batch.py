"""The loss of some rows of a step: what the student reads, and what the objective makes of it.

Shape letters: B sequences, L slots, N tokens, n tokens of a chunk, C width, V codes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from common.device import autocast, precision, rounded_products
from common.exchange.condition import Conditions
from common.exchange.trajectory import TrajectoryBatch
from learner.categorical import Categorical
from learner.chunked import chunked_loss
from learner.config import LearnerConfig
from learner.diagnostics import StepStatistics, observe
from learner.gathered_tokens import GatheredTokens, select
from learner.layout import Layout
from learner.objective import Objective, Reading, SequenceRows, Student
from learner.reading import head_of
from learner.reduction import Coefficients
from learner.teacher_targets import TeacherTargets
from learner.token_weights import TokenWeights


@dataclass(frozen=True, slots=True)
class MicroBatches:
    """Computes losses; tokens of weight 0 never reach the head."""

    config: LearnerConfig
    objective: Objective
    student: Student
    layout: Layout
    conditions: Conditions
    teacher: TeacherTargets | None
    device: torch.device

    def loss(
        self,
        batch: TrajectoryBatch,
        token_weights: TokenWeights,
        factors: Coefficients,
        statistics: StepStatistics,
    ) -> Tensor:
        """The rows' part of the step's loss, with gradient; to be called within `Layout.run`."""
        batch = batch.to(self.device)
        with autocast(self.device, precision(self.config.dtype)):
            class_B = self.conditions.resolve(batch.label_B)
            read = self.objective.read(self.student, class_B, batch)
            losses = []
            for source in dict.fromkeys(batch.sources):
                chosen = select(source, batch, token_weights, factors.token_BL)
                if len(chosen.token_N):
                    losses.append(self._of_tokens(chosen, chosen.take(read.hidden_BLC), statistics))
            total = torch.stack(losses).sum() if losses else torch.zeros((), device=self.device)
        if factors.sequence_B is not None:
            loss_B = self._of_sequences(batch, token_weights, read)
            statistics.add_sequences(batch.context, loss_B, factors.sequence_B != 0)
            total = total + (factors.sequence_B * loss_B).sum()
        return self.layout.anchored(total, read.hidden_BLC)

    def _of_sequences(
        self, batch: TrajectoryBatch, token_weights: TokenWeights, read: Reading
    ) -> Tensor:
        columns = token_weights.column, token_weights.sequence_column
        hidden_BLC = read.hidden_BLC.float()
        beside = {name: value.float() for name, value in read.beside.items()}
        rows = SequenceRows(batch, hidden_BLC, self.student, *columns, beside, self.teacher)
        loss_B = self.objective.sequence_loss(rows)
        if loss_B.shape != (len(batch),):
            raise ValueError(
                f"sequence_loss of objective.kind={self.objective.config.kind} is "
                f"{list(loss_B.shape)}, expected one number for each of {len(batch)} rows"
            )
        return loss_B

    def _of_tokens(
        self, chosen: GatheredTokens, hidden_NC: Tensor, statistics: StepStatistics
    ) -> Tensor:
        def weighted(logit_nV: Tensor, tokens: slice) -> Tensor:
            teacher = self._opinion(chosen.signal_of(tokens))
            chunk = chosen.chunk(tokens, Categorical(logit_nV), teacher)
            watch_n, slot_n = chosen.watch(tokens), chosen.slot_N[tokens]
            unknown = "entropy" not in chosen.signal
            watched = observe(self.objective, chunk, watch_n, confidence_too=unknown)
            loss_n = self.objective.token_loss(chunk)
            statistics.add_tokens(chosen.context, slot_n, {"divergence": loss_n})
            statistics.add_tokens(chosen.context, slot_n[watch_n], watched)
            return (chosen.coefficient_N[tokens] * loss_n).sum()

        head, chunk_tokens = head_of(self.student), self.config.chunk_tokens
        return chunked_loss(hidden_NC, head, weighted, chunk_tokens, chosen.groups())

    def _opinion(self, column: Mapping[str, Tensor]) -> Categorical | None:
        """The teacher's distributions where the objective asks for them."""
        if self.teacher is None or not self.objective.config.asks_teacher():
            return None
        with rounded_products(self.device, precision(self.config.dtype)):
            return self.teacher.distribution(column)
