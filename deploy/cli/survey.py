"""What somebody's images are like: how many, of which classes, sizes and colours.

Shape letters: N images, C channels, H height, W width.
"""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.errors import InputError
from common.images.opening import ImagesConfig, decode_image, open_images
from common.images.source import EncodedImages

LOOKED_AT = 256
"""Images that are opened, taken evenly."""
PIXELS = 32
"""Side at which their colours are looked at."""
TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation")


@dataclass(frozen=True)
class Survey:
    """Facts about images, and where they are; the digits where nothing was given."""

    train: Path | None
    test: Path | None
    kind: str
    images: int
    test_images: int
    classes: tuple[str, ...]
    fewest: int
    """Images of the smallest class."""
    sides: tuple[int, int, int]
    """Shortest, median and longest of the images' shorter sides."""
    is_grey: bool
    transparent: int
    """Of the images that were opened."""
    opened: int
    pixel_N3HW: Tensor
    """Those images, PIXELS a side."""

    def distinct_patches(self, size: int, patch: int) -> int:
        """Different patches of the opened images, at another size."""
        pixel_NCHW = self.pixel_N3HW[:, :1] if self.is_grey else self.pixel_N3HW
        scaled = F.interpolate(pixel_NCHW.float(), size=(size, size), mode="area").round()
        patch_ND = F.unfold(scaled, patch, stride=patch).transpose(1, 2).flatten(0, 1)
        return len(torch.unique(patch_ND, dim=0))


def survey(path: Path | None) -> Survey:
    """Look at a folder of class folders, or at Parquet; with `train` and `test` below, or without.

    Raises:
        InputError: there are no images, or some cannot be read.
    """
    if path is None:
        return _digits()
    if not path.exists():
        raise InputError(f"{path}: does not exist; give a folder of class folders or Parquet")
    kind, train, test = _splits(path)
    config = ImagesConfig.model_validate(
        {"kind": kind, "train": train, "test": test, "size": PIXELS, "channels": 3}
    )
    source = open_images(config, "train")
    held_out = len(open_images(config, "test")) if test else 0
    assert isinstance(source, EncodedImages)
    rows = torch.linspace(0, len(source) - 1, min(len(source), LOOKED_AT)).round().long().tolist()
    pixels, sides, notes = [], [], Counter[str]()
    for where, data in source.subset(rows).encoded():
        pixels.append(decode_image(data, config, where, notes))
        with Image.open(io.BytesIO(data)) as image:
            sides.append(min(image.size))
    pixel_N3HW = torch.stack(pixels)
    return Survey(
        train=train,
        test=test,
        kind=kind,
        images=len(source),
        test_images=held_out,
        classes=source.classes,
        fewest=int(source.label_N.bincount(minlength=len(source.classes)).min()),
        sides=(min(sides), int(median(sides)), max(sides)),
        is_grey=bool((pixel_N3HW == pixel_N3HW[:, :1]).all()),
        transparent=notes["transparent"],
        opened=len(rows),
        pixel_N3HW=pixel_N3HW,
    )


def _digits() -> Survey:
    config = ImagesConfig()
    train, test = open_images(config, "train"), open_images(config, "test")
    pixel_N1HW = train.pixels()
    return Survey(
        train=None,
        test=None,
        kind="digits",
        images=len(train),
        test_images=len(test),
        classes=train.classes,
        fewest=int(train.label_N.bincount().min()),
        sides=(8, 8, 8),
        is_grey=True,
        transparent=0,
        opened=len(train),
        pixel_N3HW=pixel_N1HW.repeat(1, 3, 1, 1),
    )


def _splits(path: Path) -> tuple[str, Path, Path | None]:
    """(kind, train, test) of what lies at `path`."""
    path = path.resolve()
    if path.is_file():
        return "parquet", path, None
    below = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
    train = next((below[name] for name in TRAIN if name in below), None)
    test = next((below[name] for name in TEST if name in below), None)
    if train is None and test is not None:
        raise InputError(f"{path}: has {test.name}, but no folder train beside it; rename one")
    if train is not None:
        return _kind(train), train, test
    if _kind(path) == "parquet":
        names = [file.name for file in path.glob("*.parquet")]
        is_split = any(name.startswith("test") for name in names)
        return "parquet", path, path if is_split else None
    images = [entry for entry in below.values() if not entry.name.startswith(".")]
    if not images:
        raise InputError(
            f"{path}: holds no class folders and no Parquet; expected {path}/<class>/<image>; "
            "images without classes go into one folder, as in all/<image>"
        )
    return "folder", path, None


def _kind(folder: Path) -> str:
    return "parquet" if any(folder.glob("*.parquet")) else "folder"
