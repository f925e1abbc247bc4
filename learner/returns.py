"""Rewards and returns of sampled sequences, for objectives that are policy gradients.

Shape letters: B sequences, L slots.
"""

import torch
from torch import Tensor

from common.trajectory import TrajectoryBatch


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
