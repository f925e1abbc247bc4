"""What a learner step looked like, by context and slot (docs/method.md, "Diagnostics"): sums, then
means.

Sums stay on the device while a step runs and cross ranks in one message. A step's metrics are
means over all slots; a window of steps is kept by slot (learner/profile.py). All are exact under
any split into chunks, micro-batches and ranks.

Tokens that the gate closed never reach the student's head: divergence and student entropy are
those of open slots.

Shape letters: B sequences, L slots, N tokens, Q quantities, X contexts, R ranks.
"""

import math
from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from common.exchange.entropy import entropy_of
from common.exchange.trajectory import TrajectoryBatch
from learner.gate import confidence
from learner.objective import Objective, TokenChunk
from learner.process_group import ProcessGroup
from learner.token_weights import TokenWeights

OF_ROWS = ("confidence", "survival", "survival_by_distance", "weight")
"""Known before any logit. survival and weight: of the slots of a rollout that have a loss;
by_distance: at so many slots after the first that was sampled. The confidence, where a record has
no entropy because nothing else reads it, is that of watched tokens with a loss."""
OF_TOKENS = ("divergence", "student_entropy")
"""From the logits of tokens with a loss, the divergence of every one; the entropy, and what an
objective's `diagnosed` add, of those that are watched (learner/gathered_tokens.py)."""


class StepStatistics:
    """Sums and counts by quantity, context and slot."""

    def __init__(
        self,
        diagnosed: tuple[str, ...],
        contexts: tuple[str, ...],
        length: int,
        device: torch.device,
    ) -> None:
        self.names = (*OF_ROWS, *OF_TOKENS, *diagnosed)
        self.contexts = contexts
        self.loss = torch.zeros((), device=device)
        shape = 2, len(self.names), len(contexts), length
        self.sum_2QXL = torch.zeros(shape, dtype=torch.double, device=device)
        """Sums of values, and how many were summed."""
        self.sequence_2X = torch.zeros(2, len(contexts), dtype=torch.double, device=device)
        """Sums of `sequence_loss`, and of how many rows."""
        self.keys = list(product(self.names, contexts))
        self._found: dict[tuple[str, str], tuple[float, float]] = {}

    def add_tokens(self, context: str, slot_N: Tensor, values: Mapping[str, Tensor]) -> None:
        """Count numbers of some tokens of one context, each (N,)."""
        for name, value_N in values.items():
            sum_2L = self.sum_2QXL[:, self.names.index(name), self.contexts.index(context)]
            pair_2N = torch.stack([value_N.detach().double(), torch.ones_like(slot_N).double()])
            sum_2L.index_add_(1, slot_N, pair_2N)

    def add_batch(self, batch: TrajectoryBatch, token_weights: TokenWeights) -> None:
        """Count what is known of whole rows.

        The teacher's confidence is that of every slot of a data row, and of the sampled slots of
        any other: the ground-truth prefix of a rollout says nothing about drift.
        """
        index_B = [self.contexts.index(name) for name in batch.context]
        self._context_B = torch.tensor(index_B, device=self.loss.device)
        suffix_BL = batch.suffix_BL
        if "entropy" in batch.signal:
            alpha_BL = confidence(batch.signal["entropy"], batch.spec.vocab_size)
            self._add_rows("confidence", alpha_BL, suffix_BL | batch.data_B[:, None])
        rollout_BL = token_weights.support_BL & batch.rollout_BL
        self._add_rows("survival", token_weights.open_BL, rollout_BL)
        self._add_rows("weight", token_weights.weight_BL, rollout_BL)
        slot_L = torch.arange(suffix_BL.shape[1], device=suffix_BL.device)
        slot_BL = slot_L + batch.prefix_B[:, None]
        there_BL = slot_BL < len(slot_L)
        slot_BL = slot_BL.clamp_max(len(slot_L) - 1)
        open_BL, counted_BL = (
            token_weights.open_BL.gather(1, slot_BL),
            rollout_BL.gather(1, slot_BL),
        )
        self._add_rows("survival_by_distance", open_BL, counted_BL & there_BL)

    def add_sequences(self, contexts: tuple[str, ...], loss_B: Tensor, counted_B: Tensor) -> None:
        """Count the loss of whole rows."""
        index_B = torch.tensor([self.contexts.index(name) for name in contexts])
        value_B = loss_B.detach().double().masked_fill(~counted_B, 0)
        pair_2B = torch.stack([value_B, counted_B.double()])
        self.sequence_2X.index_add_(1, index_B.to(loss_B.device), pair_2B)

    def _add_rows(self, name: str, value_BL: Tensor, counted_BL: Tensor) -> None:
        value_BL = value_BL.double().masked_fill(~counted_BL, 0)
        pair_2BL = torch.stack([value_BL, counted_BL.double()])
        self.sum_2QXL[:, self.names.index(name)].index_add_(1, self._context_B, pair_2BL)

    def metrics(
        self, batch: TrajectoryBatch, lag_B: Tensor, ranks: ProcessGroup
    ) -> dict[str, float]:
        """Sum over ranks, in place; the step's numbers, of all ranks, as {"name/context"}.

        `lag_B` counts for rollouts only. The step's one wait for the device is here.
        """
        rows_X = self._context_B.bincount(minlength=len(self.contexts)).double()
        sampled_B = batch.on_policy_B
        lag_B = lag_B.double() * sampled_B
        oldest_R = lag_B.new_zeros(ranks.world)
        oldest_R[ranks.rank] = lag_B.max()  # ranks only know how to add
        lags = torch.stack([lag_B.sum(), sampled_B.sum().double(), self.loss.double()])
        small = torch.cat([rows_X, lags, oldest_R, self.sequence_2X.flatten()])
        summed = ranks.sum_(torch.cat([small, self.sum_2QXL.flatten()]))
        self.sum_2QXL = summed[len(small) :].view_as(self.sum_2QXL)
        found = torch.cat([summed[: len(small)], self.sum_2QXL.sum(-1).flatten()]).tolist()
        total, count = found[len(small) :][: len(self.keys)], found[len(small) + len(self.keys) :]
        self._found = dict(zip(self.keys, zip(total, count, strict=True), strict=True))
        rows = dict(zip(self.contexts, found, strict=False))
        lag, sampled, loss, *rest = found[len(rows) : len(small)]
        oldest, of_sequences = rest[: ranks.world], rest[ranks.world :]
        metrics = {"loss": loss, "images": sum(rows.values())}
        if sampled:
            metrics |= {"lag_mean": lag / sampled, "lag_max": max(oldest)}
        metrics |= {f"share/{name}": count / metrics["images"] for name, count in rows.items()}
        for index, name in enumerate(self.contexts):
            if count := of_sequences[len(self.contexts) + index]:
                metrics[f"sequence_loss/{name}"] = of_sequences[index] / count
        return metrics | self._means(rows, math.log(batch.spec.vocab_size))

    def _means(self, rows: Mapping[str, float], most: float) -> dict[str, float]:
        means = {}
        for (name, context), (total, count) in self._found.items():
            if not count or name == "survival_by_distance":
                continue
            means[f"{name}/{context}"] = total / count
            if name == "confidence":
                means[f"teacher_entropy/{context}"] = (1 - total / count) * most
            if name == "survival":
                means[f"open_length/{context}"] = total / rows[context]
        return means

    def rollout_means(self) -> dict[str, float]:
        """After `metrics`: means over the tokens with a loss of all rollouts; empty without any.

        A context is one of rollouts where a slot that the student sampled has a loss, on any rank;
        all rows of a context have one policy.
        """
        means = {}
        sampled = [name for name in self.contexts if self._found["survival", name][1]]
        for name in self.names[len(OF_ROWS) :]:
            found = [self._found[name, x] for x in sampled]
            total, count = map(sum, zip(*found, strict=True)) if found else (0, 0)
            if count:
                means[name] = total / count
        return means


@torch.no_grad()
def observe(
    objective: Objective, chunk: TokenChunk, watch_n: Tensor, *, confidence_too: bool = False
) -> dict[str, Tensor]:
    """Numbers of the watched tokens of a chunk, each as long as `watch_n`; the teacher's confidence
    among them where the record does not say it of every token."""
    watched = chunk.only(watch_n)
    numbers = {"student_entropy": entropy_of(watched.student_NV)}
    if confidence_too and watched.teacher is not None:
        teacher_nV = watched.teacher.logprob_NV
        numbers["confidence"] = confidence(entropy_of(teacher_nV), teacher_nV.shape[-1])
    return numbers | objective.diagnostics(watched)
