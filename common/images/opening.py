"""Image sources: handwritten digits, a folder per class, or Parquet in the Hugging Face layout."""

from pathlib import Path

from common.errors import InputError
from common.images.config import ImagesConfig, Split
from common.images.folder import FolderImages
from common.images.listing import matches, printable
from common.images.parquet import ParquetImages
from common.images.pixels import center_crop, decode_image
from common.images.source import Digits, ImageSource

__all__ = ["ImageSource", "ImagesConfig", "center_crop", "decode_image", "open_images"]


def open_images(config: ImagesConfig, split: Split) -> ImageSource:
    """Open one split.

    Raises:
        InputError: a missing path, an empty class folder, absent columns, a bad label or a number
            of classes other than declared. Corrupt images are reported while iterating, by file
            name or by row.
    """
    if config.kind == "digits":
        return Digits(config, split)
    given = config.given(split)
    if not given:
        raise InputError(f"images.{split} is not set; {config.kind} images need a path")
    places: list[Path] = []
    for path in given:
        found = [place for place in matches(path) if place.exists()]
        if not found:
            said = "does not exist" if matches(path) else "matches no file"
            raise InputError(f"images.{split}: {printable(path)} {said}; correct the path")
        places += found
    source = FolderImages if config.kind == "folder" else ParquetImages
    return source(config, places, split)
