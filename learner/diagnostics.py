"""Numbers of one learner step: sums on the device while it runs, metrics when it is over.

Shape letters: B sequences, L slots, N tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from common.trajectory import TrajectoryBatch, is_on_policy
from learner.weighing import Weighing


@dataclass
class Tally:
    """Sums over the tokens of one step, by name and context."""

    loss: Tensor
    total: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    tokens: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, context: str, values: Mapping[str, Tensor]) -> None:
        """Count numbers of some tokens, each (N,)."""
        for name, value_N in values.items():
            key = name, context
            self.total[key] = self.total.get(key, 0) + value_N.detach().double().sum()
            self.tokens[key] = self.tokens.get(key, 0) + len(value_N)

    def means(
        self,
        names: tuple[str, ...],
        contexts: tuple[str, ...],
        sum_over_ranks: Callable[[Tensor], Tensor],
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Means over all ranks as {"name/context"}, and as {"name"} over the rollouts alone."""
        keys = [(name, context) for name in names for context in contexts]
        nothing = torch.zeros_like(self.loss, dtype=torch.double)
        sums = [self.total.get(key, nothing) for key in keys]
        counts = [nothing + self.tokens.get(key, 0) for key in keys]
        found = sum_over_ranks(torch.stack([*sums, *counts])).tolist()
        total = dict(zip(keys, found[: len(keys)], strict=True))
        count = dict(zip(keys, found[len(keys) :], strict=True))
        by_context = {f"{n}/{c}": total[n, c] / count[n, c] for n, c in keys if count[n, c]}
        rollouts = [context for context in contexts if is_on_policy(context)]
        sampled = {}
        for name in names:
            if tokens := sum(count[name, context] for context in rollouts):
                sampled[name] = sum(total[name, context] for context in rollouts) / tokens
        return by_context, sampled


def describe_batch(batch: TrajectoryBatch, weighing: Weighing, lag_B: Tensor) -> dict[str, float]:
    """Survival, teacher entropy and staleness by context (method.md 2.9), of this rank."""
    metrics: dict[str, float] = {"images": len(batch)}
    for context in dict.fromkeys(batch.context):
        member_B = torch.tensor([name == context for name in batch.context])
        member_B = member_B.to(weighing.support_BL.device)
        support_BL = weighing.support_BL & member_B[:, None]
        count = support_BL.sum().clamp_min(1)
        if "entropy" in batch.signal:
            entropy = (batch.signal["entropy"] * support_BL).sum() / count
            metrics[f"teacher_entropy/{context}"] = float(entropy)
        if not is_on_policy(context):
            continue
        metrics[f"survival/{context}"] = float((weighing.open_BL & support_BL).sum() / count)
        metrics[f"weight/{context}"] = float((weighing.weight_BL * support_BL).sum() / count)
        metrics["lag_mean"] = float(lag_B[member_B].double().mean())
        metrics["lag_max"] = max(metrics.get("lag_max", 0.0), float(lag_B[member_B].max()))
    return metrics
