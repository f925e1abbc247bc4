"""A part of a teacher's sampling, for students that let it draw some slots between two jumps
(common/models/few_steps.py).

Shape letters: B sequences, L slots, n given slots.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from common.exchange.condition import Conditions
from common.models.backbone import Backbone
from common.models.filters import filtered_logprob
from rollout.sampler import SamplingConfig, draw, noise
from rollout.stepper import Stepper


def inserted(
    teacher: Backbone,
    label_B: Tensor,
    seeds: Sequence[int],
    sampling: SamplingConfig,
    *,
    conditions: Conditions | None = None,
) -> Callable[[Tensor, int], Tensor]:
    """(token_Bn, stop) to the tokens of the slots before `stop`, of which the first n are given.

    The others are drawn as `rollout.sampler.sample` would for these seeds, behind that prefix; the
    teacher is asked once for each of their steps. Both ends are ends of steps. They are drawn even
    where sampling.flow is set: carrying their noise would give what the first jump gave.
    """
    plan = teacher.plan(seeds, sampling.decoding)
    noise_BL = noise(seeds, teacher.spec.length, label_B.device)

    @torch.no_grad()
    def continued(token_Bn: Tensor, stop: int) -> Tensor:
        start, length = token_Bn.shape[1], teacher.spec.length
        first, last = (plan.starts.index(slot) for slot in (start, stop))
        token_BL = F.pad(token_Bn, (0, length - start))
        stepper = Stepper(teacher, label_B, sampling.guidance, plan, token_BL, first, conditions)
        for step in range(first, last):
            slots = plan.slots(step)
            logprob_BnV = filtered_logprob(stepper.logits(), sampling)
            token_BL[:, slots] = draw(logprob_BnV, noise_BL[:, slots])
            stepper.commit(token_BL[:, slots])
        return token_BL[:, :stop]

    return continued
