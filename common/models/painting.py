"""What a next-scale model (VAR) keeps while it decodes.

Shape letters: B sequences, n slots that were not fed yet, D code width, H latent side.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.models.key_value_cache import KeyValueCache


@dataclass(slots=True)
class Painting:
    """The canvas, what is to be fed next, and the layers' caches."""

    canvas_BDHH: Tensor
    pending_BnD: Tensor
    """Downsampled canvases of scales that were not fed yet (nothing for the first scale)."""
    fed: int
    """Scales in the caches."""
    caches: list[KeyValueCache]

    def joined(self, other: "Painting") -> "Painting":
        """Of the sequences of both, with as many scales in the caches: nothing is pending, the next
        scale is made from the canvas."""
        return Painting(
            torch.cat([self.canvas_BDHH, other.canvas_BDHH]),
            self.pending_BnD[:0],
            self.fed,
            [mine.joined(its) for mine, its in zip(self.caches, other.caches, strict=True)],
        )
