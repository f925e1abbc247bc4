"""Image sources: handwritten digits, a folder per class, or Parquet in the Hugging Face layout.

Every source yields uint8 batches pixel_BCHW (C is 1 or 3) with integer labels, in a fixed order.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import PositiveInt
from torch import Tensor

from common.config import Config
from common.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
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

    @property
    def has_test(self) -> bool:
        """Whether there are held-out images."""
        return self.kind == "digits" or self.test is not None


class ImageSource(ABC):
    """A finite, ordered set of labelled images."""

    classes: tuple[str, ...]
    label_N: Tensor
    name: str

    def __len__(self) -> int:
        return len(self.label_N)

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield uint8 pixel_BCHW in order; the labels are `label_N`."""

    def pixels(self, limit: int | None = None) -> Tensor:
        """All images, or `limit` of them taken evenly, as one uint8 tensor pixel_NCHW."""
        pixel_NCHW = torch.cat(list(self.batches(256)))
        return pixel_NCHW if limit is None else pixel_NCHW[_evenly(len(pixel_NCHW), limit)]


def open_images(config: ImagesConfig, split: Split) -> ImageSource:
    """Open one split.

    Raises:
        InputError: a missing path, an empty class folder, absent columns or a bad label. Corrupt
            images are reported while iterating, by file name or by row.
    """
    if config.kind == "digits":
        return Digits(config, split)
    path = config.train if split == "train" else config.test
    if path is None:
        raise InputError(f"images.{split} is not set; {config.kind} images need a path")
    if not path.exists():
        raise InputError(f"images.{split}: {path} does not exist")
    return FolderImages(config, path) if config.kind == "folder" else ParquetImages(config, path)


class Digits(ImageSource):
    """scikit-learn's 8x8 digits; every fifth image is held out."""

    def __init__(self, config: ImagesConfig, split: Split) -> None:
        from sklearn.datasets import load_digits

        if config.size != 8 or config.channels != 1:
            raise InputError("images.kind digits needs images.size=8 and images.channels=1")
        loaded: Any = load_digits()
        held_out = np.arange(len(loaded.target)) % 5 == 4
        chosen = held_out if split == "test" else ~held_out
        self._pixel_N1HW = torch.from_numpy(
            (loaded.images[chosen] * (255 / 16)).round().astype(np.uint8)
        )[:, None]
        self.label_N = torch.from_numpy(loaded.target[chosen].astype(np.int64))
        self.classes = tuple(str(name) for name in loaded.target_names)
        self.name = f"scikit-learn digits, {split}"

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self._pixel_N1HW.split(size)


class FolderImages(ImageSource):
    """`path/<class>/<file>`; classes and files in sorted order, as torchvision's ImageFolder."""

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self._config = config
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
        if not folders:
            raise InputError(f"{path}: holds no class folders; expected {path}/<class>/<image>")
        self._files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
            if not files:
                raise InputError(
                    f"{folder}: class folder without images ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            self._files += files
            labels += [label] * len(files)
        self.classes = tuple(folder.name for folder in folders)
        self.label_N = torch.tensor(labels)
        self.name = str(path)

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self._files), size):
            files = self._files[start : start + size]
            yield torch.stack([decode_image(f.read_bytes(), self._config, str(f)) for f in files])


class ParquetImages(ImageSource):
    """Columns `image: struct<bytes, path>` and `label`, in one file or a folder of files."""

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self._config = config
        self._files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not self._files:
            raise InputError(f"{path}: holds no .parquet files")
        labels = [self._labels(file) for file in self._files]
        self.label_N = torch.from_numpy(np.concatenate(labels))
        self.classes = self._class_names()
        self.name = str(path)

    def batches(self, size: int) -> Iterator[Tensor]:
        for file in self._files:
            first = 0
            for record in pq.ParquetFile(file).iter_batches(size, columns=["image"]):
                encoded = record.column("image").field("bytes").to_pylist()
                rows = (f"{file}, row {first + row}" for row in range(len(encoded)))
                yield torch.stack(
                    [
                        decode_image(data, self._config, where)
                        for data, where in zip(encoded, rows, strict=True)
                    ]
                )
                first += len(encoded)

    def _labels(self, file: Path) -> np.ndarray:
        try:
            schema = pq.read_schema(file)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file}: not a readable Parquet file: {error}") from None
        image = schema.field("image").type if "image" in schema.names else None
        if image is None or not pa.types.is_struct(image) or image.get_field_index("bytes") < 0:
            raise InputError(f"{file}: no column image: struct<bytes, path>; found {schema.names}")
        if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
            raise InputError(f"{file}: no integer column label; found {schema.names}")
        label = pq.read_table(file, columns=["label"]).column("label")
        if label.null_count or (len(label) and min(label.to_numpy()) < 0):
            raise InputError(f"{file}: column label has missing or negative values")
        return label.to_numpy().astype(np.int64)

    def _class_names(self) -> tuple[str, ...]:
        return tuple(str(label) for label in range(int(self.label_N.max()) + 1))


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


def _evenly(total: int, limit: int) -> Tensor:
    return torch.linspace(0, total - 1, min(limit, total)).round().long()
