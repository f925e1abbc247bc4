"""Finite, ordered sets of labelled images, whatever they are stored in.

Every source yields uint8 batches pixel_BCHW (C is 1 or 3) with integer labels, in a fixed order.
"""

import copy
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.images.classes import assign
from common.images.config import ImagesConfig, Split
from common.images.contents import Reading, content_hash, rows_digest
from common.images.decoded import DecodedImages
from common.images.listing import Findings
from common.images.pixels import decode_image


class ImageSource(ABC):
    """A finite, ordered set of labelled images."""

    classes: tuple[str, ...]
    label_N: Tensor
    name: str
    found: Findings
    """Of the whole source, also in its subsets."""
    _config: ImagesConfig

    def __len__(self) -> int:
        return len(self.label_N)

    @abstractmethod
    def batches(self, size: int, reading: Reading | None = None) -> Iterator[Tensor]:
        """Yield uint8 pixel_BCHW in order; the labels are `label_N`.

        `reading` collects what they were read from.
        """

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Where the images lie; others may be named in these."""

    @abstractmethod
    def contents(self) -> Iterator[tuple[str, str]]:
        """(where, hash of the content) of every image: all are read, none is decoded."""

    @abstractmethod
    def _keep(self, rows: Sequence[int]) -> None:
        """Forget the images of all other rows."""

    def hashes(self) -> Iterator[str]:
        """A hash of every image's content, in order."""
        for _, found in self.contents():
            yield found

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

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings that decide what pixels a file's content becomes."""
        return decoding(self._config)

    def digest(self) -> str:
        """Sixteen hex digits of pixels and labels: of the images' contents, order and labels, the
        number of classes and how images are decoded; not of names or of where they are stored.

        Reads every image once, as their pixels do, without decoding it.
        """
        return self.identity(self.hashes())

    def identity(self, hashes: Iterable[str]) -> str:
        """`digest`, where all images were read and hashed before."""
        facts = {"decoding": self.decoding, "classes": len(self.classes)}
        text = json.dumps(facts, sort_keys=True)
        return rows_digest(text, self.label_N.tolist(), hashes)


def decoding(config: ImagesConfig) -> dict[str, Any]:
    """The settings that decide what pixels a file's content becomes."""
    return config.model_dump(mode="json", include={"size", "channels", "background", "exif"})


@cache
def _digits() -> tuple[np.ndarray, np.ndarray, list[str]]:
    """(pixels of 0 to 16, labels, names of the classes), read once: they lie in a table of text."""
    from sklearn.datasets import load_digits

    loaded: Any = load_digits()
    return loaded.images, loaded.target, [str(name) for name in loaded.target_names]


class Digits(ImageSource):
    """scikit-learn's 8x8 digits; every fifth image is held out."""

    def __init__(self, config: ImagesConfig, split: Split) -> None:
        if config.size != 8 or config.channels != 1:
            raise InputError(
                "images.kind digits needs images.size=8 and images.channels=1, and tokens.crops "
                "center or flip"
            )
        self._config = config
        image_NHW, label_N, names = _digits()
        held_out = np.arange(len(label_N)) % 5 == 4
        chosen = held_out if split == "test" else ~held_out
        self._pixel_N1HW = torch.from_numpy(
            (image_NHW[chosen] * (255 / 16)).round().astype(np.uint8)
        )[:, None]
        self.name = f"scikit-learn digits, {split}"
        self.found = Findings()
        self.classes, self.label_N = assign(config, names, label_N[chosen], self.name, self.found)

    def batches(self, size: int, reading: Reading | None = None) -> Iterator[Tensor]:
        if reading is not None:
            reading.hashes += [found for _, found in self.contents()]
        yield from self._pixel_N1HW.split(size)

    def files(self) -> Sequence[Path]:
        return ()

    def contents(self) -> Iterator[tuple[str, str]]:
        for row, pixel_1HW in enumerate(self._pixel_N1HW):
            yield f"{self.name}, row {row}", content_hash(pixel_1HW.numpy().tobytes())

    def _keep(self, rows: Sequence[int]) -> None:
        self._pixel_N1HW = self._pixel_N1HW[torch.tensor(rows, dtype=torch.long)]


class EncodedImages(ImageSource, ABC):
    """Images that are decoded and cropped while they are read."""

    decoded: DecodedImages | None = None
    """Those whose pixels are known."""

    @abstractmethod
    def _encoded(self, reading: Reading) -> Iterator[tuple[str, bytes]]:
        """(where an image comes from, its file's content), in order; files that are opened are
        told to `reading`."""

    def batches(self, size: int, reading: Reading | None = None) -> Iterator[Tensor]:
        reading = Reading() if reading is None else reading
        images = self._encoded(reading)
        while some := list(islice(images, size)):
            hashes = [content_hash(data) for _, data in some]
            reading.hashes += hashes
            yield torch.stack(
                [
                    self._pixels(data, where, content, reading)
                    for (where, data), content in zip(some, hashes, strict=True)
                ]
            )

    def _pixels(self, data: bytes, where: str, content: str, reading: Reading) -> Tensor:
        known = None if self.decoded is None else self.decoded.find(content)
        if known is not None:
            return known
        return decode_image(data, self._config, where, reading.notes)

    def contents(self) -> Iterator[tuple[str, str]]:
        for where, data in self._encoded(Reading()):
            yield where, content_hash(data)

    def encoded(self) -> Iterator[tuple[str, bytes]]:
        """(where an image comes from, its file's content), in order."""
        yield from self._encoded(Reading())


def _evenly(total: int, limit: int) -> list[int]:
    return torch.linspace(0, total - 1, min(limit, total)).round().long().tolist()
