"""Finite, ordered sets of labelled images, whatever they are stored in.

Every source yields uint8 batches pixel_BCHW (C is 1 or 3) with integer labels, in a fixed order.
"""

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from common.data.classes import assign
from common.data.config import ImagesConfig, Split
from common.data.listing import Findings
from common.data.pixels import decode_image
from common.errors import InputError


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
    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield uint8 pixel_BCHW in order; the labels are `label_N`."""

    @abstractmethod
    def hashes(self) -> Iterator[str]:
        """A hash of every image's content, in order; all of them are read, none is decoded."""

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

    @property
    def decoding(self) -> dict[str, Any]:
        """The settings that decide what pixels a file's content becomes."""
        return decoding(self._config)

    def digest(self) -> str:
        """Sixteen hex digits of pixels and labels: of the images' contents, order and labels, the
        number of classes and how images are decoded; not of names or of where they are stored.

        Reads every image once, as their pixels do, without decoding it.
        """
        facts = {"decoding": self.decoding, "classes": len(self.classes)}
        hasher = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
        for label, content in zip(self.label_N.tolist(), self.hashes(), strict=True):
            hasher.update(f"{label} {content}\n".encode())
        return hasher.hexdigest()[:16]


def decoding(config: ImagesConfig) -> dict[str, Any]:
    """The settings that decide what pixels a file's content becomes."""
    return config.model_dump(mode="json", include={"size", "channels", "background", "exif"})


class Digits(ImageSource):
    """scikit-learn's 8x8 digits; every fifth image is held out."""

    def __init__(self, config: ImagesConfig, split: Split) -> None:
        from sklearn.datasets import load_digits

        if config.size != 8 or config.channels != 1:
            raise InputError(
                "images.kind digits needs images.size=8 and images.channels=1, and tokens.crops "
                "center or flip"
            )
        self._config = config
        loaded: Any = load_digits()
        held_out = np.arange(len(loaded.target)) % 5 == 4
        chosen = held_out if split == "test" else ~held_out
        self._pixel_N1HW = torch.from_numpy(
            (loaded.images[chosen] * (255 / 16)).round().astype(np.uint8)
        )[:, None]
        self.name = f"scikit-learn digits, {split}"
        names = [str(name) for name in loaded.target_names]
        self.found = Findings()
        self.classes, self.label_N = assign(
            config, names, loaded.target[chosen], self.name, self.found
        )

    def batches(self, size: int) -> Iterator[Tensor]:
        yield from self._pixel_N1HW.split(size)

    def hashes(self) -> Iterator[str]:
        for pixel_1HW in self._pixel_N1HW:
            yield content_hash(pixel_1HW.numpy().tobytes())

    def _keep(self, rows: Sequence[int]) -> None:
        self._pixel_N1HW = self._pixel_N1HW[torch.tensor(rows, dtype=torch.long)]


class EncodedImages(ImageSource, ABC):
    """Images that are decoded and cropped while they are read."""

    @abstractmethod
    def _encoded(self) -> Iterator[tuple[str, bytes]]:
        """(where an image comes from, its file's content), in order."""

    def batches(self, size: int) -> Iterator[Tensor]:
        images = self._encoded()
        while some := list(islice(images, size)):
            yield torch.stack([decode_image(data, self._config, where) for where, data in some])

    def hashes(self) -> Iterator[str]:
        for _, data in self._encoded():
            yield content_hash(data)


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _evenly(total: int, limit: int) -> list[int]:
    return torch.linspace(0, total - 1, min(limit, total)).round().long().tolist()
