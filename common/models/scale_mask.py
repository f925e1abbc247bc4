"""Which token maps a token of a next-scale model sees.

Shape letters: B sequences, n slots that look, S slots that are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """Which of S slots each of n sees."""

    mask_nS: Tensor
    """(n, S), or (B, 1, n, S) where sequences differ."""
    parts: tuple[tuple[int, int], ...] = ()
    """The same as neighbours that see the same: how many of the n, and how many of the first S
    they see. Empty where it is not so."""


def seen_scales(
    scale_L: Sequence[int], start: int, history_B: Tensor | None, device: torch.device
) -> Seen | None:
    """What slots from `start` on see, by the scales of all slots; None: everything."""
    own_n = scale_L[start:]
    if own_n[0] == own_n[-1]:
        return None
    scale_S = torch.tensor(scale_L, device=device)
    mask_nS = _visible(scale_S[start:], scale_S, history_B)
    if history_B is not None:
        return Seen(mask_nS)
    counts = [len(list(same)) for _, same in groupby(own_n)]
    return Seen(mask_nS, tuple((n, start + sum(counts[: k + 1])) for k, n in enumerate(counts)))


def _visible(own_n: Tensor, scale_S: Tensor, history_B: Tensor | None) -> Tensor:
    """From the scales of the slots: those up to its own, (n, S); or, with a history, the first,
    so many before its own, and its own, (B, 1, n, S) for all heads."""
    own_n1 = own_n[:, None]
    visible_nS = own_n1 >= scale_S
    if history_B is None:
        return visible_nS
    near_BnS = own_n1 - scale_S <= history_B.to(scale_S.device)[:, None, None]
    return (visible_nS & (near_BnS | (scale_S == 0)))[:, None]
