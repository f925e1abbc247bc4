"""Rows that the student makes by whole passes over data sequences, not slot by slot.

Samples of one condition are drawn from one pass: its distributions are the same for all of them.

Shape letters: B rows, K conditions, G samples of each, L slots, N tokens of K sequences, n tokens
of a chunk, C width, V codes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.device import steady_attention
from common.errors import Diverged
from common.exchange.condition import Conditions
from common.finite import is_finite
from common.models.backbone import Backbone
from common.models.filters import filtered_logprob
from common.models.guidance import guide, scale_per_slot
from common.models.plan import DecodePlan
from common.randomness import Draws
from common.spec import SequenceSpec
from rollout.context import ContextConfig, SamplerName
from rollout.drawn import Sampler
from rollout.sampler import SamplingConfig, draw

CHUNK = 256
"""Tokens whose logits exist at a time."""


class ForcedContext(ContextConfig, ABC):
    """A source whose rows are made so, with nothing given at their start."""

    needs_scales: ClassVar[bool] = False
    """Whether tokens must be of several scales."""
    shares_input: ClassVar[bool] = False
    """Whether the same is read for all samples of a condition."""

    @property
    def has_input(self) -> bool:
        """Whether its rows are read otherwise than they are (`input_token`)."""
        return True

    @property
    def has_labels(self) -> bool:
        """Whether the codes of its rows are what the student is to say there."""
        return False

    @property
    def sampler(self) -> SamplerName:
        return "student"

    @property
    def way(self) -> str:
        return self.kind

    def prefix(self, index: int, draws: Draws, *, spec: SequenceSpec, step: int) -> int:
        return 0

    @abstractmethod
    def sampler_of(self, student: "ForcedPass") -> Sampler:
        """Who makes its rows in a worker that holds the student."""


@dataclass(frozen=True, slots=True)
class ForcedPass:
    """The student, asked for all slots of sequences at once."""

    backbone: Backbone
    sampling: SamplingConfig
    """Guidance and filters, as in decoding."""
    conditions: Conditions
    """What the labels stand for."""

    def draws(
        self,
        label_K: Tensor,
        input_KL: Tensor,
        plan: DecodePlan,
        noise_KLG: Tensor | None,
        *,
        best: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """(token_KLG, logprob_KLG) on the CPU: independent draws in every slot from the student's
        distribution there, behind what is read before; without noise, and with `best` before the
        draws, its likeliest code.

        Raises:
            Diverged: the logits are not finite.
        """
        noise_NG = None if noise_KLG is None else noise_KLG.flatten(0, 1)
        tokens, found, first = [], [], 0
        for logprob_nV in self._logprobs(label_K, input_KL, plan):
            part = slice(first, first + len(logprob_nV))
            token_nG = _picked(logprob_nV, None if noise_NG is None else noise_NG[part], best)
            tokens.append(token_nG)
            found.append(logprob_nV.gather(-1, token_nG))
            first = part.stop
        logprob_NG = torch.cat(found).cpu()
        if not is_finite(logprob_NG):
            raise Diverged("the model's log-probabilities are not finite in a pass over data")
        shape = *input_KL.shape, logprob_NG.shape[-1]
        return torch.cat(tokens).cpu().view(shape), logprob_NG.view(shape)

    @torch.no_grad()
    def _logprobs(self, label_K: Tensor, input_KL: Tensor, plan: DecodePlan) -> Iterator[Tensor]:
        """logprob_nV of what is drawn from, a chunk of tokens at a time."""
        device = next(self.backbone.parameters()).device
        with steady_attention(device):
            hidden_KLC = self._hidden(label_K.to(device), input_KL.to(device), plan)
        for hidden_nC in hidden_KLC.flatten(0, 1).split(CHUNK):
            yield filtered_logprob(self.backbone.head(hidden_nC).float(), self.sampling)

    def _hidden(self, label_K: Tensor, input_KL: Tensor, plan: DecodePlan) -> Tensor:
        """hidden_KLC, guided: every rule commutes with the linear head."""
        guidance, table = self.sampling.guidance, self.conditions
        conditional = self.backbone.features(table.resolve(label_K), input_KL, plan)
        scales = guidance.scales(plan, self.backbone.guidance_rule) if guidance else ()
        if all(scale == 1 for scale in scales):
            return conditional
        null_K = table.resolve(torch.full_like(label_K, table.null))
        scale_L1 = scale_per_slot(scales, plan)[:, None].to(conditional.device)
        unconditional = self.backbone.features(null_K, input_KL, plan)
        return guide(conditional, unconditional, scale_L1).to(conditional.dtype)


def _picked(logprob_nV: Tensor, noise_nG: Tensor | None, best: bool) -> Tensor:
    """token_nG."""
    found = [logprob_nV.argmax(-1)] if best or noise_nG is None else []
    if noise_nG is not None:
        noise_nG = noise_nG.to(logprob_nV.device)
        found += [draw(logprob_nV, noise_n) for noise_n in noise_nG.unbind(-1)]
    return torch.stack(found, -1)


@dataclass(frozen=True, slots=True)
class Groups:
    """Rows in groups of neighbours, the samples of one condition."""

    size: int

    @classmethod
    def of(cls, order_seeds: Sequence[int]) -> "Groups":
        """From what samples of one condition share, row by row."""
        distinct = len(set(order_seeds))
        size = len(order_seeds) // distinct
        if list(order_seeds) != [seed for seed in order_seeds[::size] for _ in range(size)]:
            raise ValueError("rows are not whole groups of neighbours")
        return cls(size)

    def firsts(self, value_B: Tensor) -> Tensor:
        """What all rows of a group have, once for each group."""
        return value_B[:: self.size]

    def plan(self, plan: DecodePlan) -> DecodePlan:
        """That of the groups."""
        return plan.rows(torch.arange(0, len(plan.order_BL), self.size))

    def split(self, value_BL: Tensor) -> Tensor:
        """Values of rows as (K, L, G)."""
        return value_BL.unflatten(0, (-1, self.size)).transpose(1, 2)

    def joined(self, value_KLG: Tensor) -> Tensor:
        """(K, L, G), or (K, L, 1) where all samples are alike, as values of rows (B, L)."""
        shape = *value_KLG.shape[:2], self.size
        return value_KLG.expand(shape).transpose(1, 2).flatten(0, 1)
