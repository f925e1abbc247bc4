"""The `[images]` section."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt

from common.config import Config

Split = Literal["train", "test"]


class ImagesConfig(Config):
    kind: Literal["digits", "folder", "parquet"] = "digits"
    """digits: scikit-learn's 1,797 digits; folder: one folder per class; parquet: image, label."""
    train: Path | None = None
    """Training images: a folder of class folders, a Parquet file, or a folder of Parquet files."""
    test: Path | None = None
    """Held-out images in the same layout; optional for folder and parquet."""
    size: PositiveInt = 8
    """Side in pixels after the ADM centre crop."""
    channels: Literal[1, 3] = 1
    """1 converts to grey, 3 to RGB."""
    classes: PositiveInt | None = None
    """Number of classes; by default what the training images show."""

    @property
    def has_test(self) -> bool:
        """Whether there are held-out images."""
        return self.kind == "digits" or self.test is not None
