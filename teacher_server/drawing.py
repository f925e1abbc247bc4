"""Images of a record's rows, for scorers that look at them.

Shape letters: B sequences, L slots, H height, W width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from common.device import place
from common.errors import InputError
from common.exchange.trajectory import TrajectoryBatch
from common.spec import SequenceSpec
from common.tokenization.tokenizer import Tokenizer
from teacher_server.scorer import ScorerFiles, TargetImages

Target = Literal["pixels", "codes"]


@dataclass(frozen=True, slots=True)
class Drawing:
    """The run's tokenizer, frozen, on the scorers' device."""

    tokenizer: Tokenizer
    spec: SequenceSpec
    device: torch.device
    photographs: TargetImages | None = None
    """What rows are compared with; None: what the tokenizer makes of the data's codes."""

    @classmethod
    def of(cls, files: ScorerFiles, target: Target = "codes") -> "Drawing":
        """Of the run's files; `target` is what rows are compared with.

        Raises:
            InputError: the tokenizer is missing or damaged, or there are no images.
        """
        device = cls.device_of(files)
        tokenizer = files.load_tokenizer(device)
        if target == "codes":
            return cls(tokenizer, tokenizer.shape, device)
        if files.images is None:
            raise InputError(
                "a scorer's target is pixels, but it was given no images; set its target to codes"
            )
        return cls(tokenizer, tokenizer.shape, device, files.images)

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
        """image_BCHW in [-1, 1] of what rows are compared with, each read or drawn once, however
        many share it: as it was before it became codes, or as the tokenizer draws those."""
        if self.photographs is not None:
            condition_B = batch.id_B if batch.group_B is None else batch.group_B
            return self.photographs.pixels(condition_B).float() / 127.5 - 1
        cell_BL = batch.plan.to_grid(batch.target_BL)
        cell_KL, number_B = cell_BL.unique(dim=0, return_inverse=True)
        return self._drawn(cell_KL)[number_B]

    def pixels(self, batch: TrajectoryBatch) -> Tensor:
        """The rows as people see them, uint8 pixel_BCHW."""
        return self.tokenizer.decode(batch.plan.to_grid(batch.token_BL).to(self.device))
