"""Views of a training image, as LlamaGen's code extraction cuts them (docs/backbones.md, "LlamaGen
codes").

Shape letters: B images, A views of an image, C channels, H height, W width, S side of a view.
"""

from typing import Literal

import torch
from torch import Tensor

Crops = Literal["center", "flip", "ten_crop"]
VIEWS: dict[Crops, int] = {"center": 1, "flip": 2, "ten_crop": 10}
"""Views per image."""


def source_side(size: int, crops: Crops, crop_range: float) -> int:
    """Side of the ADM crop that views of side `size` are cut from: 281 for 256 and 1.1."""
    return int(size * crop_range) if crops == "ten_crop" else size


def cut_views(pixel_BCHW: Tensor, crops: Crops, size: int) -> Tensor:
    """pixel_BACSS: the image itself, it and its mirror image, or torchvision's `TenCrop`.

    Ten crops are top left, top right, bottom left, bottom right and centre of the image, then the
    same five of the mirror image.
    """
    if crops == "center":
        return pixel_BCHW[:, None]
    mirrored_BCHW = pixel_BCHW.flip(-1)
    if crops == "flip":
        return torch.stack([pixel_BCHW, mirrored_BCHW], dim=1)
    return torch.stack([*_five(pixel_BCHW, size), *_five(mirrored_BCHW, size)], dim=1)


def _five(pixel_BCHW: Tensor, size: int) -> list[Tensor]:
    bottom, right = (side - size for side in pixel_BCHW.shape[-2:])
    middle = round(bottom / 2), round(right / 2)  # half to even, as torchvision rounds
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    return [pixel_BCHW[..., top : top + size, left : left + size] for top, left in corners]
