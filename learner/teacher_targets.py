"""How the learner reads the teacher: whole distributions by chunk, single numbers by batch.

Shape letters: B sequences, L slots, N tokens of a chunk, V codes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.device import autocast
from common.exchange.entropy import entropy_of
from common.exchange.signal import SignalConfig
from common.exchange.trajectory import TrajectoryBatch
from learner.categorical import Categorical

Quantity = Callable[[Tensor, Tensor], Tensor]
"""(the teacher's logprob_NV, the sequence's codes token_N) -> a number per token, (N,)."""


def token_logprob(logprob_NV: Tensor, token_N: Tensor) -> Tensor:
    """log p(y_t) of the sequence's own codes."""
    return logprob_NV.gather(-1, token_N[:, None])[:, 0]


def max_prob(logprob_NV: Tensor, token_N: Tensor) -> Tensor:
    """The probability of the teacher's likeliest code."""
    return logprob_NV.amax(-1).exp()


def entropy(logprob_NV: Tensor, token_N: Tensor) -> Tensor:
    """Entropy in nats, for records that come without."""
    return entropy_of(logprob_NV)


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
    def distribution(self, column: Mapping[str, Tensor]) -> Categorical:
        """The teacher's opinion from wire columns gathered to (N, ...); always float32, also
        within an outer autocast (common/device.py, `rounded_products`, may round factors)."""
        with autocast(self.head.weight.device, torch.float32):
            logit_NV = self.signal.logit(column, self.head)
            if logit_NV is not None:
                return Categorical(logit_NV)
            return Categorical.normalised(self.signal.logprob(column, self.head))

    def logprob(self, column: Mapping[str, Tensor]) -> Tensor:
        """Its logprob_NV."""
        return self.distribution(column).logprob_NV

    def read(
        self,
        batch: TrajectoryBatch,
        quantities: Mapping[str, Quantity],
        chunk: int,
    ) -> dict[str, Tensor]:
        """These quantities of every token, each (B, L), with at most `chunk` logits at a time.

        One more pass through the teacher's head, without gradient.
        """
        device = self.head.weight.device
        token_N = batch.token_BL.flatten()
        column = {name: value.flatten(0, 1) for name, value in batch.signal.items()}
        parts: dict[str, list[Tensor]] = {name: [] for name in quantities}
        for start in range(0, len(token_N), chunk):
            tokens = slice(start, start + chunk)
            logprob_NV = self.logprob({n: v[tokens].to(device) for n, v in column.items()})
            for name, found in parts.items():
                chosen = token_N[tokens].to(device)
                found.append(quantities[name](logprob_NV, chosen))
        return {name: torch.cat(found).view_as(batch.token_BL) for name, found in parts.items()}
