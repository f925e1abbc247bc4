"""Rewards of whole rows, and how much better than its group a row did.

Scorers write named parts, `sequence.NAME` of every row and, if they can tell, `signal.NAME` of
every slot, which add up to it; the learner weighs them, so that weights change without new
samples. A part that failed says so in `sequence.NAME_failed`, and its whole group is left out.

Everything is a function of whole groups and of sums over all ranks, so no order of rows, no
micro-batch and no rank changes it.

Shape letters: B sequences, L slots, K groups, R parts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.config.quantities import Weight
from common.config.schema import Config
from common.errors import InputError
from common.exchange.trajectory import FAILURE, TrajectoryBatch
from learner.process_group import ProcessGroup
from learner.token_weights import ObjectiveState

TINY = 1e-8
"""Added to a standard deviation, as the released code of VA-pi has it."""
PATIENCE = 8
"""Steps in a row without a group that could be judged, after which a run ends."""
FAILED = "_failed"
EMPTY = "reward/steps_without"
MEAN, GROUP_STD = "reward/mean", "reward/group_std"
CONSTANT_GROUPS = "reward/constant_groups"
LEFT_OUT = "reward/groups_left_out"
OF_STEPS = (MEAN, GROUP_STD, CONSTANT_GROUPS)
"""What is said of a step in which anything was judged, beside the mean of every part."""


class AdvantageConfig(Config):
    std: Literal["group", "batch", "none"] = "group"
    """What a reward less its group's mean is divided by. group: the standard deviation in the
    group (GRPO), which vanishes as the student gets sure, and with it the weight of the teacher;
    batch: of all rows less their groups' means; none: nothing, so that beta means the same
    throughout, and sequence-level training ends at p exp(r / beta)."""
    clip: Weight = 0.0
    """Cut advantages off beyond +- this; 0 does not. VA-pi has 5."""


@dataclass(frozen=True, slots=True)
class Rewards:
    """What scorers say of the rows that the student sampled."""

    group_B: Tensor
    """Numbers of the groups, 0 to K - 1."""
    kept_B: Tensor
    """Rows of the student whose whole group could be judged."""
    part_BR: Tensor
    """Float64, in the order of the weights."""
    weight_R: Tensor
    credit_BL: Tensor | None = None
    """The weighted sum by slot, where that was asked for."""

    @property
    def total_B(self) -> Tensor:
        """The weighted sum of the parts."""
        return self.part_BR @ self.weight_R

    @property
    def credit_BX(self) -> Tensor:
        """What is compared within groups: one number of every row (X = 1), or of every slot."""
        return self.total_B[:, None] if self.credit_BL is None else self.credit_BL

    @property
    def kept_K(self) -> Tensor:
        """Whether a group was kept; its rows are kept or left out together."""
        found_K = torch.zeros(int(self.group_B.max()) + 1, dtype=torch.bool)
        found_K = found_K.to(self.kept_B.device)
        found_K[self.group_B[self.kept_B]] = True
        return found_K


def read(batch: TrajectoryBatch, weights: Mapping[str, float], *, per_token: bool) -> Rewards:
    """The parts of `weights`, of this rank's rows.

    Raises:
        InputError: a part is not in the record.
    """
    device = batch.token_BL.device
    missing = [name for name in weights if name not in batch.sequence]
    if missing:
        raise InputError(
            f"objective.rewards has {', '.join(missing)}, but the records hold "
            f"{', '.join(sorted(batch.sequence)) or 'no numbers of whole rows'}; add the scorers "
            "that write them to [scorers]"
        )
    parts = [batch.sequence[name].double() for name in weights]
    weight_R = torch.tensor([*weights.values()], dtype=torch.double, device=device)
    group_B = batch.id_B if batch.group_B is None else batch.group_B
    group_B = group_B.unique(return_inverse=True)[1]
    failed_B = torch.zeros(len(batch), dtype=torch.bool, device=device)
    for name in weights:
        if (said_B := batch.sequence.get(name + FAILED)) is not None:
            failed_B |= said_B != 0
    spoiled_B = torch.isin(group_B, group_B[failed_B])
    credit_BL = None
    if per_token:
        credits = [weight * _credit(batch, name) for name, weight in weights.items()]
        credit_BL = torch.stack(credits).sum(0)
    kept_B = batch.on_policy_B & ~spoiled_B
    return Rewards(group_B, kept_B, torch.stack(parts, 1), weight_R, credit_BL)


def _credit(batch: TrajectoryBatch, name: str) -> Tensor:
    if name not in batch.signal:
        raise InputError(
            f"objective.per_token is set, but the records say nothing of {name} by slot; set "
            "per_token in its table of [scorers], or leave objective.per_token off"
        )
    return batch.signal[name].double()


def advantages(config: AdvantageConfig, rewards: Rewards, ranks: ProcessGroup) -> Tensor:
    """advantage_B, or (B, L) from credits by slot: less the mean of the row's group, the row
    included, in float64; exactly 0 where all members have the same, and in rows left out.

    The expected gradient is (1 - 1/G) times that of the reward, for groups of G.
    """
    value_BX = rewards.credit_BX
    group_B, kept_B1 = rewards.group_B, rewards.kept_B[:, None]
    size_K = torch.bincount(group_B).clamp_min(1)[:, None]
    mean_KX = _added(value_BX, group_B) / size_K
    alike_BX = _alike(value_BX, group_B)[group_B]
    centred_BX = (value_BX - mean_KX[group_B]).masked_fill(alike_BX, 0)
    centred_BX = centred_BX.masked_fill(~kept_B1, 0)
    square_K = _added(centred_BX.square().mean(1, keepdim=True), group_B)
    if config.std == "group":
        std_K1 = (square_K / (size_K - 1).clamp_min(1)).sqrt()
        centred_BX = centred_BX / (std_K1[group_B] + TINY)
    elif config.std == "batch":
        freedom = ((size_K - 1)[:, 0] * rewards.kept_K).sum()
        total_2 = ranks.sum_(torch.stack([square_K.sum(), freedom.double()]))
        centred_BX = centred_BX / ((total_2[0] / total_2[1].clamp_min(1)).sqrt() + TINY)
    if config.clip:
        centred_BX = centred_BX.clamp(-config.clip, config.clip)
    return (centred_BX[:, 0] if rewards.credit_BL is None else centred_BX).float()


def did_well(rewards: Rewards, least: float | None, *, whole_groups: bool) -> Tensor:
    """True_B for rows of that reward or more, by default of their group's mean; with `whole_groups`
    for all of a group in which any is."""
    reward_B, group_B = rewards.total_B, rewards.group_B
    if least is None:
        sums_K1, size_K = _added(reward_B[:, None], group_B), torch.bincount(group_B)
        good_B = reward_B >= (sums_K1[:, 0] / size_K)[group_B]
    else:
        good_B = reward_B >= least
    return torch.isin(group_B, group_B[good_B]) if whole_groups else good_B


def _added(value_BX: Tensor, group_B: Tensor) -> Tensor:
    groups = int(group_B.max()) + 1
    return value_BX.new_zeros(groups, value_BX.shape[1]).index_add(0, group_B, value_BX)


def _alike(value_BX: Tensor, group_B: Tensor) -> Tensor:
    """True_KX where all rows of a group have the same."""
    groups = int(group_B.max()) + 1
    index_BX = group_B[:, None].expand_as(value_BX)
    start_KX = value_BX.new_zeros(groups, value_BX.shape[1])
    low_KX, high_KX = (
        start_KX.scatter_reduce(0, index_BX, value_BX, how, include_self=False)
        for how in ("amin", "amax")
    )
    return low_KX == high_KX


def remember(
    state: ObjectiveState,
    batch: TrajectoryBatch,
    rewards: Rewards,
    weights: Mapping[str, float],
    ranks: ProcessGroup,
) -> None:
    """Put what rewards looked like into the state, which is plotted: means over kept rows of all
    ranks (of the total and of every part), the mean standard deviation within groups, the share of
    groups from which nothing is learned because all rows have the same, and how many groups were
    left out since the run began. A step in which nothing was judged has that count alone: what was
    said of an earlier one is forgotten.

    Raises:
        InputError: no group of several steps on end could be judged.
    """
    counts = ranks.sum_(torch.stack(_counts(batch, rewards)))
    rows, groups, left_out, spread, same, *sums = counts.tolist()
    state[LEFT_OUT] = state.get(LEFT_OUT, 0.0) + left_out
    if left_out or groups:
        state[EMPTY] = 0.0 if groups else state.get(EMPTY, 0.0) + 1
    if state.get(EMPTY, 0.0) >= PATIENCE:
        raise InputError(
            f"in {PATIENCE} steps on end a reward failed in every group, so nothing was trained "
            f"({_failures(batch, weights)}); mend what judges, or take it out of objective.rewards"
        )
    for name in (*(f"reward/{part}" for part in weights), *OF_STEPS):
        state.pop(name, None)
    if not groups:
        return
    means = {name: total / rows for name, total in zip(weights, sums, strict=True)}
    state[MEAN] = sum(weights[name] * mean for name, mean in means.items())
    state |= {f"reward/{name}": mean for name, mean in means.items()}
    state[GROUP_STD] = spread / groups
    state[CONSTANT_GROUPS] = same / groups


def _failures(batch: TrajectoryBatch, weights: Mapping[str, float]) -> str:
    """What scorers said of the newest record that they could not judge."""
    said = {name: batch.facts.get(FAILURE + name) for name in weights}
    return "; ".join(f"{name}: {why}" for name, why in said.items() if why) or ", ".join(weights)


def _counts(batch: TrajectoryBatch, rewards: Rewards) -> list[Tensor]:
    """Kept rows, kept groups, groups left out; over the kept ones their standard deviations and how
    many have no advantages; sums of the parts."""
    kept_B, kept_K, group_B = rewards.kept_B, rewards.kept_K, rewards.group_B
    value_B1, size_K1 = rewards.total_B[:, None], torch.bincount(group_B)[:, None]
    centred_B1 = value_B1 - (_added(value_B1, group_B) / size_K1)[group_B]
    spread_K1 = _added(centred_B1.square(), group_B) / (size_K1 - 1).clamp_min(1)
    alike_K = _alike(rewards.credit_BX, group_B).all(1)
    of_student_K = _added(batch.on_policy_B[:, None].double(), group_B)[:, 0] > 0
    return [
        kept_B.sum().double(),
        kept_K.sum().double(),
        (of_student_K & ~kept_K).sum().double(),
        spread_K1[:, 0].sqrt()[kept_K].sum(),
        (alike_K & kept_K).sum().double(),
        *rewards.part_BR[kept_B].sum(0).unbind(),
    ]
