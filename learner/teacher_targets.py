"""How the learner reads the teacher: whole distributions by chunk, single numbers by batch.

Shape letters: B sequences, L slots, N tokens of a chunk, V codes, C clusters.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.exchange.signal import SignalConfig, entropy_of
from common.exchange.trajectory import TrajectoryBatch
from learner.relaxation import ClusterMap, cluster_logprob

Quantity = Callable[[Tensor, Tensor, ClusterMap | None], Tensor]


def _token_logprob(logprob_NV: Tensor, token_N: Tensor, clusters: ClusterMap | None) -> Tensor:
    return logprob_NV.gather(-1, token_N[:, None])[:, 0]


def _max_prob(logprob_NV: Tensor, token_N: Tensor, clusters: ClusterMap | None) -> Tensor:
    return logprob_NV.amax(-1).exp()


def _cluster_confidence(logprob_NV: Tensor, token_N: Tensor, clusters: ClusterMap | None) -> Tensor:
    coarse_NC = logprob_NV if clusters is None else cluster_logprob(logprob_NV, clusters)
    return 1 - entropy_of(coarse_NC) / math.log(coarse_NC.shape[-1])


QUANTITIES: Mapping[str, Quantity] = {
    "token_logprob": _token_logprob,
    "max_prob": _max_prob,
    "cluster_confidence": _cluster_confidence,
}
"""Numbers per token that an objective may read: log p(y_t), max p, and 1 - H(P) / log C."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teacher's encoding, its output head, and the head's digest."""

    signal: SignalConfig
    head: nn.Linear
    digest: str

    def check(self, batch: TrajectoryBatch) -> None:
        """Refuse a record that another teacher scored."""
        found = batch.facts.get("head")
        if found != self.digest:
            raise ValueError(
                f"the record was scored by a teacher whose head has digest {found}, but the "
                f"learner holds {self.digest}; both must load the same teacher file"
            )

    @torch.no_grad()
    def logprob(self, column: Mapping[str, Tensor]) -> Tensor:
        """The teacher's logprob_NV from wire columns gathered to (N, ...); always float32."""
        with torch.autocast(self.head.weight.device.type, enabled=False):
            return self.signal.logprob(column, self.head)

    def read(
        self,
        batch: TrajectoryBatch,
        names: Iterable[str],
        clusters: ClusterMap | None,
        chunk: int,
    ) -> dict[str, Tensor]:
        """The named quantities of every token, each (B, L), with at most `chunk` logits at a time.

        One more pass through the teacher's head, without gradient.
        """
        device = self.head.weight.device
        token_N = batch.token_BL.flatten()
        column = {name: value.flatten(0, 1) for name, value in batch.signal.items()}
        parts: dict[str, list[Tensor]] = {name: [] for name in names}
        for start in range(0, len(token_N), chunk):
            tokens = slice(start, start + chunk)
            logprob_NV = self.logprob({n: v[tokens].to(device) for n, v in column.items()})
            for name, found in parts.items():
                chosen = token_N[tokens].to(device)
                found.append(QUANTITIES[name](logprob_NV, chosen, clusters))
        return {name: torch.cat(found).view_as(batch.token_BL) for name, found in parts.items()}
