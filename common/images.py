"""Image sources: handwritten digits, a folder per class, or Parquet in the Hugging Face layout.

Every source yields uint8 batches pixel_BCHW (C is 1 or 3) with integer labels, in a fixed order.
"""

import copy
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self

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
RECORD_ROWS = 256
"""Rows of a Parquet file that are in memory together."""
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

    @abstractmethod
    def _keep(self, rows: Sequence[int]) -> None:
        """Forget the images of all other rows."""

    def subset(self, rows: Sequence[int]) -> Self:
        """Some of the images, by increasing row number; small to send to another process."""
        part = copy.copy(self)
        part.label_N = self.label_N[torch.tensor(rows, dtype=torch.long)]
        part._keep(rows)
        return part

    def pixels(self, limit: int | None = None) -> Tensor:
        """All images, or `limit` of them taken evenly, as one uint8 tensor pixel_NCHW."""
        chosen = self if limit is None else self.subset(_evenly(len(self), limit))
        return torch.cat(list(chosen.batches(256)))


def open_images(config: ImagesConfig, split: Split) -> ImageSource:
    """Open one split.

    Raises:
        InputError: a missing path, an empty class folder, absent columns, a bad label or a number
            of classes other than declared. Corrupt images are reported while iterating, by file
            name or by row.
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
            raise InputError(
                "images.kind digits needs images.size=8 and images.channels=1, and tokens.crops "
                "center or flip"
            )
        loaded: Any = load_digits()
        held_out = np.arange(len(loaded.target)) % 5 == 4
        chosen = held_out if split == "test" else ~held_out
        self._pixel_N1HW = torch.from_numpy(
            (loaded.images[chosen] * (255 / 16)).round().astype(np.uint8)
        )[:, None]
        self.label_N = torch.from_numpy(loaded.target[chosen].astype(np.int64))
        self.classes = tuple(str(name) for name in loaded.target_names)
        self.name = f"scikit-learn digits, {split}"
        _require_classes(config, len(self.classes), self.name)

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self._pixel_N1HW.split(size)

    def _keep(self, rows: Sequence[int]) -> None:
        self._pixel_N1HW = self._pixel_N1HW[torch.tensor(rows, dtype=torch.long)]


class EncodedImages(ImageSource, ABC):
    """Images that are decoded and cropped while they are read."""

    _config: ImagesConfig

    @abstractmethod
    def _encoded(self) -> Iterator[tuple[str, bytes | None]]:
        """(where an image comes from, its file's content), in order."""

    def batches(self, size: int) -> Iterator[Tensor]:
        images = self._encoded()
        while some := list(islice(images, size)):
            yield torch.stack([decode_image(data, self._config, where) for where, data in some])


class FolderImages(EncodedImages):
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
        _require_classes(config, len(self.classes), self.name)

    def _encoded(self) -> Iterator[tuple[str, bytes | None]]:
        for file in self._files:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None

    def _keep(self, rows: Sequence[int]) -> None:
        self._files = [self._files[row] for row in rows]


class ParquetImages(EncodedImages):
    """Columns `image: struct<bytes, path>` and `label`, in one file or a folder of files."""

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self._config = config
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise InputError(f"{path}: holds no .parquet files")
        labels = [self._labels(file) for file in files]
        self._rows = [
            (file, np.arange(len(found))) for file, found in zip(files, labels, strict=True)
        ]
        self.label_N = torch.from_numpy(np.concatenate(labels))
        if not len(self.label_N):
            raise InputError(f"{path}: holds no images")
        classes = int(self.label_N.max()) + 1
        if config.classes is not None and classes <= config.classes:
            classes = config.classes  # the last ones may have no image in this split
        self.classes = tuple(str(label) for label in range(classes))
        self.name = str(path)
        _require_classes(config, classes, self.name)

    def _encoded(self) -> Iterator[tuple[str, bytes | None]]:
        for file, row_N in self._rows:
            try:
                yield from _read_rows(file, row_N)
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file}: not a readable Parquet file: {error}") from None

    def _keep(self, rows: Sequence[int]) -> None:
        wanted, first, kept = np.asarray(rows, dtype=np.int64), 0, []
        for file, row_N in self._rows:
            inside = wanted[(wanted >= first) & (wanted < first + len(row_N))]
            if len(inside):
                kept.append((file, row_N[inside - first]))
            first += len(row_N)
        self._rows = kept

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


def _read_rows(file: Path, row_N: np.ndarray) -> Iterator[tuple[str, bytes | None]]:
    """(where, bytes) of increasing rows of a file; row groups without any are not read."""
    with pq.ParquetFile(file) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            stop = first + parquet.metadata.row_group(group).num_rows
            wanted = row_N[(row_N >= first) & (row_N < stop)]
            records = parquet.iter_batches(RECORD_ROWS, row_groups=[group], columns=["image.bytes"])
            while len(wanted):
                record = next(records)
                here = wanted[wanted < first + len(record)]
                encoded = record.column("image").field("bytes").take(pa.array(here - first))
                for row, data in zip(here, encoded.to_pylist(), strict=True):
                    yield f"{file}, row {row}", data
                first, wanted = first + len(record), wanted[len(here) :]
            first = stop


def _require_classes(config: ImagesConfig, found: int, name: str) -> None:
    if config.classes is not None and found != config.classes:
        raise InputError(
            f"{name}: has {found} classes, but images.classes is {config.classes}; correct one"
        )


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


def _evenly(total: int, limit: int) -> list[int]:
    return torch.linspace(0, total - 1, min(limit, total)).round().long().tolist()
