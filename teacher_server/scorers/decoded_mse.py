"""How near the decoded image is to the one that the row began as.

The reward is minus the mean squared error of pixels in [-1, 1] (VA-pi, arXiv 2512.19680, without
its perceptual part, which is the scorer `perceptual`), of a row whose first slots, or whose input,
were the codes of that image; `target` says whether it is compared with the image itself or with
what the tokenizer makes of those codes.

With `per_token` every slot gets the error in its own part of the image. That is its effect where a
tokenizer draws every code in one place (`patch_kmeans`); a convolutional decoder spreads it.

Shape letters: B sequences, L slots, H height, W width.
"""

from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from teacher_server.drawing import Drawing
from teacher_server.reward import ComparedConfig, Judge, Judged
from teacher_server.scorer import ScorerFiles


class Config(ComparedConfig):
    per_token: bool = False
    """Also say each slot's share, for objective.per_token."""

    def adds_to_tokens(self) -> tuple[str, ...]:
        return (self.kind,) if self.per_token else ()

    def judge(self, files: ScorerFiles) -> Judge:
        drawing = self.drawing(files)
        if self.per_token and drawing.spec.scales:
            raise InputError(
                "scorers: decoded_mse has per_token, but codes of several scales have no part of "
                "the image of their own; leave per_token off"
            )
        return lambda batch: self._judged(batch, drawing)

    def _judged(self, batch: TrajectoryBatch, drawing: Drawing) -> Judged:
        image_BCHW = drawing.images(batch, batch.token_BL)
        error_BHW = (image_BCHW - drawing.targets(batch)).square().mean(1)
        reward_B = -error_BHW.mean((1, 2))
        if not self.per_token:
            return Judged(reward_B)
        return Judged(reward_B, batch.plan.to_slots(_shares(-error_BHW, drawing.spec.grid)))


def _shares(error_BHW: Tensor, grid: tuple[int, int]) -> Tensor:
    """Of every cell of the grid, row by row: they add up to the mean over the image."""
    of_cells = F.adaptive_avg_pool2d(error_BHW[:, None], grid)
    return of_cells.flatten(1) / of_cells[0].numel()
