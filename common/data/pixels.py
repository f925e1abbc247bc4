"""From a file's content to pixels."""

import io

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from common.data.config import ImagesConfig
from common.errors import InputError


def decode_image(data: bytes | None, config: ImagesConfig, where: str) -> Tensor:
    """One encoded image to uint8 pixel_CHW of the configured size and channels.

    Raises:
        InputError: the bytes are no image; the message names `where`.
    """
    try:
        image = Image.open(io.BytesIO(data or b""))
        image = image.convert("L" if config.channels == 1 else "RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known image format" if unknown else error
        raise InputError(
            f"{where}: not a readable image ({reason}); remove or replace it"
        ) from None
    array = np.asarray(center_crop(image, config.size))
    return torch.from_numpy(array.reshape(config.size, config.size, -1).copy()).permute(2, 0, 1)


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """ADM's crop: BOX halvings, BICUBIC to the short side, centre (backbones.md 3.1)."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    if min(image.size) != size:
        scale = size / min(image.size)
        target = round(image.width * scale), round(image.height * scale)
        image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))
