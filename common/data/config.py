"""The `[images]` section."""

from typing import Literal

from PIL import ImageColor
from pydantic import field_validator

from common.config import Config, UserPath
from common.quantities import Classes, Side

Split = Literal["train", "test"]


class ImagesConfig(Config):
    kind: Literal["digits", "folder", "parquet"] = "digits"
    """digits: scikit-learn's 1,797 digits; folder: one folder per class; parquet: image, label."""
    train: UserPath | None = None
    """Training images: a folder of class folders, a Parquet file, or a folder of Parquet files."""
    test: UserPath | None = None
    """Held-out images in the same layout; optional for folder and parquet."""
    size: Side = 8
    """Side in pixels after the ADM centre crop."""
    channels: Literal[1, 3] = 1
    """1 converts to grey, 3 to RGB."""
    classes: Classes | None = None
    """Number of classes; by default what the training images show."""

    background: str = "white"
    """Colour under transparent pixels: a name of CSS or #rrggbb."""
    exif: Literal["apply", "ignore"] = "apply"
    """apply turns photographs upright; ignore leaves them as stored, as torchvision does and the
    published codes were made."""

    @field_validator("background")
    @classmethod
    def _background_is_opaque(cls, value: str) -> str:
        try:
            colour = ImageColor.getrgb(value)
        except ValueError:
            raise ValueError("is no colour; give a name such as white, or #rrggbb") from None
        if len(colour) != 3:
            raise ValueError("is itself transparent; give a name such as white, or #rrggbb")
        return value

    @property
    def has_test(self) -> bool:
        """Whether there are held-out images."""
        return self.kind == "digits" or self.test is not None
