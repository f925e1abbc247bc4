"""A model's own last pass as its draft: speculative Jacobi decoding (arXiv 2410.01699).

Shape letters: R sequences, n slots of the window, V vocabulary.
"""

import math

import torch
from torch import Tensor

from common.models.jacobi import JacobiConfig
from rollout.inverse_cdf import draw
from rollout.speculation import GUESS, Checked, Rows, at_places, excess


class JacobiWindow:
    """`Proposals` of the model itself: what it said of a slot behind guesses, it is asked again
    behind what became of them."""

    def __init__(self, config: JacobiConfig, codes: int, length: int) -> None:
        self.width = min(config.window, length)
        self._redraw, self._codes = config.redraw, codes

    def begin(self, rows: Rows, prefix: int) -> None:
        """Nothing is known: all codes are alike."""
        shape = len(rows.at_R), self.width, self._codes
        self._logprob_RnV = torch.full(shape, -math.log(self._codes), device=rows.at_R.device)
        uniform_Rn = rows.uniform(GUESS, rows.at_R, self.width)
        self._guess_Rn = (uniform_Rn * self._codes).long()

    def propose(self, rows: Rows) -> Tensor:
        rows.write(rows.at_R, self._guess_Rn)
        return self._logprob_RnV

    def learn(self, rows: Rows, checked: Checked) -> None:
        """Move on by what was decided. Slots that come into view are guessed from what was said of
        the last one that was in view."""
        n = self.width
        place_Rn = torch.arange(n, device=rows.at_R.device) + checked.decided_R[:, None]
        is_old_Rn, source_Rn = place_Rn < n, place_Rn.clamp_max(n - 1)
        said_RnV = at_places(checked.logprob_RnV, source_Rn)
        guess_Rn = checked.token_Rn.gather(1, source_Rn)
        before_RnV = at_places(checked.guess_logprob_RnV, source_Rn)
        stays_Rn, weight_RnV = torch.zeros_like(is_old_Rn), said_RnV
        if self._redraw == "keep":
            stays_Rn = is_old_Rn
            said_RnV = torch.where(is_old_Rn[..., None], before_RnV, said_RnV)
        elif self._redraw == "couple":
            stays_Rn = is_old_Rn & checked.is_kept_Rn.gather(1, source_Rn)
            weight_RnV = torch.where(is_old_Rn[..., None], excess(said_RnV, before_RnV), said_RnV)
        moves_Rn, uniform_Rn = ~stays_Rn, rows.uniform(GUESS, rows.at_R, n)
        drawn_N1 = draw(weight_RnV[moves_Rn][:, None], uniform_Rn[moves_Rn][:, None])
        guess_Rn[moves_Rn] = drawn_N1[:, 0]
        self._guess_Rn, self._logprob_RnV = guess_Rn, said_RnV

    def keep(self, chosen_R: Tensor) -> None:
        self._guess_Rn, self._logprob_RnV = self._guess_Rn[chosen_R], self._logprob_RnV[chosen_R]
