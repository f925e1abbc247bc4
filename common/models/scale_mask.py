"""Which token maps a token of a next-scale model sees.

Shape letters: B sequences, n slots that look, S slots that are looked at.
"""

from torch import Tensor


def visible(own_n: Tensor, scale_S: Tensor, history_B: Tensor | None) -> Tensor:
    """From the scales of the slots: those up to its own, (n, S); or, with a history, the first,
    so many before its own, and its own, (B, 1, n, S) for all heads."""
    own_n1 = own_n[:, None]
    visible_nS = own_n1 >= scale_S
    if history_B is None:
        return visible_nS
    near_BnS = own_n1 - scale_S <= history_B.to(scale_S.device)[:, None, None]
    return (visible_nS & (near_BnS | (scale_S == 0)))[:, None]
