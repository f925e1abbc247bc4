"""Continue prefixes with one backbone and its own way of sampling.

Shape letters: B sequences of a lease, L slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from common.errors import InputError
from common.exchange.condition import Conditions
from common.flow.laws import FlowCodes
from common.models.backbone import Backbone
from common.models.plan import DecodePlan
from rollout.context import RolloutRequest
from rollout.drawn import Drawn
from rollout.model_draft import Draft
from rollout.sampler import SamplingConfig, sample


@dataclass(frozen=True, slots=True)
class PrefixSampler:
    """The student or the teacher, as a sampler of what follows a prefix."""

    backbone: Backbone
    sampling: SamplingConfig
    conditions: Conditions | None = None
    """What the labels stand for; None: the classes themselves."""
    codes: FlowCodes | None = None
    """The tokenizer's, where sampling.flow carries noise to them."""
    draft: Draft | None = None
    """Who guesses ahead, which leaves the law as it is."""

    def __call__(
        self,
        work: RolloutRequest,
        seeds: Sequence[int],
        plan: DecodePlan,
        order_seeds: Sequence[int] | None = None,
    ) -> Drawn:
        """As `rollout.drawn.Sampler`, whatever steps the sampler takes itself; the order is what
        rows of one condition share.

        Raises:
            InputError: the sampler's order begins with other cells than the plan's prefix.
        """
        decoded = sample(
            self.backbone,
            work.label_B,
            seeds,
            self.sampling,
            order_seeds=order_seeds,
            cell_BL=work.cell_BL,
            prefix_B=work.prefix_B,
            conditions=self.conditions,
            codes=self.codes,
            draft=self.draft,
        )
        token_BL, logprob_BL = decoded.token_BL.cpu(), decoded.logprob_BL.cpu()
        if torch.equal(decoded.plan.order_BL, plan.order_BL):
            return Drawn(token_BL, logprob_BL, acceptance=decoded.acceptance)
        slot_BL = decoded.plan.slots_in(plan)
        given_BL = torch.arange(slot_BL.shape[1]) < work.prefix_B[:, None]
        if not torch.equal(slot_BL < work.prefix_B[:, None], given_BL):
            raise InputError(
                "contexts.sources.teacher: the teacher decodes in another order than the student, "
                "so it cannot continue a prefix of the student's order; set min_prefix and "
                "max_prefix to 0"
            )
        drawn = token_BL.gather(1, slot_BL), logprob_BL.gather(1, slot_BL)
        return Drawn(*drawn, acceptance=decoded.acceptance)
