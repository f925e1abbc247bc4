"""Rewards and returns of sampled sequences, for objectives that are policy gradients.

Shape letters: B sequences, L slots.
"""

import torch
from torch import Tensor

from common.exchange.trajectory import TrajectoryBatch
from learner.process_group import ProcessGroup


def log_ratio(batch: TrajectoryBatch, where_BL: Tensor) -> Tensor:
    """r_t = log p(y_t) - log q_old(y_t) on the chosen slots, 0 elsewhere.

    q_old is the distribution that drew the code (`logprob` of the record); log p(y_t) is the
    teacher quantity token_logprob.
    """
    reward_BL = batch.signal["token_logprob"].float() - batch.logprob_BL
    return reward_BL.masked_fill(~where_BL, 0.0)


def returns(reward_BL: Tensor, discount: float) -> Tensor:
    """R_t = sum_{t' >= t} discount^(t' - t) r_t', float32 from float64 sums."""
    if discount == 0:
        return reward_BL
    total_B = torch.zeros_like(reward_BL[:, 0], dtype=torch.double)
    found = []
    for reward_B in reward_BL.double().unbind(1)[::-1]:
        total_B = reward_B + discount * total_B
        found.append(total_B)
    return torch.stack(found[::-1], dim=1).to(reward_BL.dtype)


def whitened(value_BL: Tensor, where_BL: Tensor, ranks: ProcessGroup) -> Tensor:
    """(x - mean) / sqrt(var + 1e-8) with the moments of the chosen slots of all ranks; 0 elsewhere.

    float64 in between; without a chosen slot on any rank everything is 0.
    """
    chosen_n = value_BL[where_BL].double()
    total_2 = ranks.sum_(torch.stack([chosen_n.sum(), chosen_n.new_tensor(chosen_n.numel())]))
    count = total_2[1].clamp_min(1)
    mean = total_2[0] / count
    variance = ranks.sum_((chosen_n - mean).square().sum()[None])[0] / count
    white_BL = (value_BL.double() - mean) * (variance + 1e-8).rsqrt()
    return white_BL.masked_fill(~where_BL, 0.0).to(value_BL.dtype)
