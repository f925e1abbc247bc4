"""Images of a record's rows, for scorers that look at them.

Shape letters: B sequences, L slots, H height, W width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.device import place
from common.exchange.trajectory import TrajectoryBatch
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer, load_tokenizer
from teacher_server.scorer import ScorerFiles


@dataclass(frozen=True, slots=True)
class Drawing:
    """The run's tokenizer, frozen, on the scorers' device."""

    tokenizer: Tokenizer
    spec: SequenceSpec
    device: torch.device

    @classmethod
    def of(cls, files: ScorerFiles) -> "Drawing":
        """Of the run's files.

        Raises:
            InputError: the tokenizer is missing or damaged.
        """
        device = cls.device_of(files)
        tokenizer = load_tokenizer(files.teacher.tokenizer).to(device).requires_grad_(False)
        return cls(tokenizer, tokenizer.shape, device)

    @staticmethod
    def device_of(files: ScorerFiles) -> torch.device:
        """Where scorers that look at images work: where the teacher does."""
        return place(files.config.device)

    def images(self, batch: TrajectoryBatch, token_BL: Tensor) -> Tensor:
        """image_BCHW in [-1, 1] on the CPU, of tokens in the order of the batch's plan."""
        return self._drawn(batch.plan.to_grid(token_BL))

    @torch.no_grad()
    def _drawn(self, cell_BL: Tensor) -> Tensor:
        parts = [
            self.tokenizer.image(part.to(self.device)).clamp(-1, 1).cpu()
            for part in cell_BL.split(self.tokenizer.images_at_once)
        ]
        return torch.cat(parts)

    def targets(self, batch: TrajectoryBatch) -> Tensor:
        """image_BCHW of what rows are compared with, each drawn once, however many share it."""
        cell_BL = batch.plan.to_grid(batch.target_BL)
        cell_KL, number_B = cell_BL.unique(dim=0, return_inverse=True)
        return self._drawn(cell_KL)[number_B]

    def pixels(self, batch: TrajectoryBatch) -> Tensor:
        """The rows as people see them, uint8 pixel_BCHW."""
        return self.tokenizer.decode(batch.plan.to_grid(batch.token_BL).to(self.device))
