"""Independent draws in all slots from one pass over a noisy data sequence (VA-pi, arXiv
2512.19680; docs/method.md, "Draws from one pass").

The student reads x~, which is the data sequence x*, or in every slot with probability `noise` a
code drawn uniformly. From that one pass all samples of a condition are drawn, slot by slot
independently of each other, and the record has the draws as `token`, x~ as `input_token` and x* as
`target_token`. What is drawn in a slot changes nothing that is read later, so the log-probability
of a row is exactly the sum over its slots: the law of this policy is exact.

Shape letters: B rows, K conditions, G samples of each, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from common.config.quantities import Probability
from common.models.plan import DecodePlan
from common.randomness import derive_seed
from rollout.context import RolloutRequest
from rollout.drawn import Drawn
from rollout.forced import ForcedContext, ForcedPass, Groups
from rollout.sampler import noise


class Config(ForcedContext):
    shares_input: ClassVar[bool] = True

    noise: Probability = 0.5
    """Share of the codes that are read which are drawn uniformly instead of the data's; the same
    for all samples of a condition."""

    def sampler_of(self, student: ForcedPass) -> "ParallelSampler":
        return ParallelSampler(student, self.noise)


@dataclass(frozen=True, slots=True)
class ParallelSampler:
    """The student, as a sampler of all slots at once."""

    student: ForcedPass
    noise: float

    def __call__(
        self,
        work: RolloutRequest,
        seeds: Sequence[int],
        plan: DecodePlan,
        order_seeds: Sequence[int] | None = None,
    ) -> Drawn:
        """As `rollout.drawn.Sampler`."""
        shared = order_seeds or seeds
        groups, vocab = Groups.of(shared), self.student.backbone.spec.vocab_size
        data_KL = groups.firsts(plan.to_slots(work.cell_BL))
        input_KL = noisy(data_KL, self.noise, shared[:: groups.size], vocab)
        noise_KLG = groups.split(noise(seeds, data_KL.shape[1]))
        label_K, own = groups.firsts(work.label_B), groups.plan(plan)
        token_KLG, logprob_KLG = self.student.draws(label_K, input_KL, own, noise_KLG)
        read_BL = groups.joined(input_KL[..., None])
        return Drawn(groups.joined(token_KLG), groups.joined(logprob_KLG), read_BL)


def noisy(token_KL: Tensor, share: float, seeds: Sequence[int], vocab_size: int) -> Tensor:
    """The tokens, each with probability `share` one drawn uniformly (which may be the same): a
    function of each sequence's seed alone."""
    length, rows = token_KL.shape[1], []
    for token_L, seed in zip(token_KL, seeds, strict=True):
        generator = torch.Generator().manual_seed(derive_seed(seed, "noisy-context"))
        replaced_L = torch.rand(length, generator=generator, dtype=torch.float64) < share
        other_L = torch.randint(vocab_size, (length,), generator=generator)
        rows.append(torch.where(replaced_L, other_L, token_L))
    return torch.stack(rows)
