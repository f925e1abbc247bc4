"""What a raster model is fed in each step of a ZipAR plan, and what it may see (docs/method.md,
"Parallel decoding").

Input 0 is the class and input i the token of cell i - 1, from which cell i is predicted; it has one
place in the key-value cache. It is fed in the step after its token was decoded, which is the step
that predicts cell i, but for one case: a row that starts before the row above has ended lacks its
input. A stand-in is fed in its place, with the true one's rotary position. A stand-in predicts its
cell and is gone: nothing else ever attends to it, and in the step after the row above has ended the
true input takes its place in the cache, with everything before it in view. (Under
`mask_undecoded = false` the stand-in stays in view till then.)

So every input sees the true inputs that come no later in the raster and were fed by then (a
stand-in itself, too), and no key or value ever changes once a true input wrote it.

Shape letters: L cells and inputs, N everything that is fed (inputs and stand-ins), n in one step, S
cached inputs, R rows that start with a stand-in.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.key_value_cache import KeyValueCache, Placement
from common.models.plan import ZipARPlan

BLANK = -1
"""Stands for the slot of a token where there is none."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One step: the last inputs predict the slots of the plan, those before only fill the cache."""

    token_slot_n: Tensor
    """Slot of the plan that holds each input's token; BLANK for the class and for zero vectors."""
    placement: Placement


@dataclass(frozen=True, slots=True)
class ZipARCache:
    """Decode state of a raster model under ZipAR; index tensors are made once per plan."""

    first: int
    feeds: tuple[Feed, ...]
    layers: list[KeyValueCache]

    def feed(self, step: int) -> Feed:
        return self.feeds[step - self.first]


def feeds(plan: ZipARPlan, first: int, device: torch.device) -> tuple[Feed, ...]:
    """What to feed in every step from `first` on, with indices and masks on `device`."""
    order_L = plan.order_BL[0].cpu()
    slot_L = order_L.argsort()
    step_L = plan.step_L[slot_L]  # by cell
    fed_L = torch.cat([step_L.new_zeros(1), step_L[:-1] + 1]).clamp_min(first)
    late_R = _late_rows(plan, step_L, fed_L, first)
    step_N = torch.cat([fed_L, step_L[late_R]])
    input_N = torch.cat([torch.arange(len(step_L)), late_R])
    source_N = torch.cat([torch.arange(-1, len(step_L) - 1), _stand_ins(plan, step_L, late_R)])
    predicts_N = step_L[input_N] == step_N
    chosen_N = ((step_N * 2 + predicts_N) * len(step_L) + input_N).argsort()
    step_N, input_N, source_N = step_N[chosen_N], input_N[chosen_N], source_N[chosen_N]
    token_N = torch.where(source_N < 0, BLANK, slot_L[source_N.clamp_min(0)])
    visible_NL = input_N[:, None] >= torch.arange(len(step_L))
    if plan.zipar.mask_undecoded:
        visible_NL &= step_N[:, None] >= fed_L
        visible_NL[torch.arange(len(input_N)), input_N] = True
    sizes = torch.bincount(step_N)[first:].tolist()
    ends = [int(part.max()) + 1 for part in input_N.split(sizes)]
    token_N, input_N, visible_NL = (x.to(device) for x in (token_N, input_N, visible_NL))
    parts = zip(token_N.split(sizes), input_N.split(sizes), visible_NL.split(sizes), strict=True)
    return tuple(
        Feed(token_n, Placement(input_n, visible_nL[:, :end].contiguous()))
        for (token_n, input_n, visible_nL), end in zip(parts, ends, strict=True)
    )


def _late_rows(plan: ZipARPlan, step_L: Tensor, fed_L: Tensor, first: int) -> Tensor:
    """First cells of rows that start before their predecessor is decoded."""
    head_R = torch.arange(0, len(step_L), plan.cols)
    return head_R[(step_L[head_R] >= first) & (step_L[head_R] < fed_L[head_R])]


def _stand_ins(plan: ZipARPlan, step_L: Tensor, late_R: Tensor) -> Tensor:
    """The cell whose token is fed in place of each late row's predecessor."""
    if plan.zipar.row_start == "zero":
        return torch.full_like(late_R, BLANK)
    if plan.zipar.row_start == "left_above":
        return late_R - plan.cols
    source_R = (late_R - 2 * plan.cols).clamp_min(0)
    cell_RL = source_R[:, None] + torch.arange(plan.cols)
    decoded_R = (step_L[cell_RL] < step_L[late_R, None]).sum(1)
    return source_R + decoded_R - 1
