"""Nucleus (top-p) filtering: which codes are dropped. Families differ at the edge.

Shape letters: B sequences, n slots in the current step, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from common.config.registry import declared

TopPRule = Callable[[Tensor, float], Tensor]
"""(logit_BnV, p) -> dropped_BnV, which never has the likeliest code. A family's file declares its
own in `TOP_P_RULES`, by name."""


def top_p_rules() -> dict[str, TopPRule]:
    """The rules of all families by name."""
    return declared("common.models.backbones", "TOP_P_RULES")


def drop_from_top(logit_BnV: Tensor, top_p: float) -> Tensor:
    """LlamaGen: what has more than p before it, from the likeliest down."""
    ordered, order = logit_BnV.sort(dim=-1, descending=True)
    probability = ordered.softmax(-1)
    edge = probability.cumsum(-1) - probability > top_p
    return torch.zeros_like(edge).scatter_(-1, order, edge)


def drop_from_bottom(logit_BnV: Tensor, top_p: float) -> Tensor:
    """VAR: what makes up no more than 1 - p with all that is less likely."""
    ordered, order = logit_BnV.sort(dim=-1, descending=False)
    edge = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    edge[..., -1] = False
    return torch.zeros_like(edge).scatter_(-1, order, edge)
