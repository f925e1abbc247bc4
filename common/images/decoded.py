"""Pixels that a command has decoded once already, for those of its steps that come later.

Known by content: whoever finds an image's pixels needs no name, row or order. The files are of one
command and one machine; where they are absent images are decoded, which gives the same.

Shape letters: N images, B images of a batch, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.images.contents import Reading

MOST_BYTES = 2**30
"""Larger sets are decoded again: their pixels would take more room than their files."""
PIXELS, HASHES = "pixels.u8", "hashes.npy"


class DecodedImages:
    """A folder of one file of pixels and one of the hashes of their contents."""

    def __init__(self, folder: Path, shape: tuple[int, int, int], settings: dict[str, Any]) -> None:
        """`shape`: C, H, W; `settings` decide what pixels a content becomes."""
        self._folder, self._shape, self.settings = folder, shape, settings
        self._known: tuple[dict[bytes, int], np.ndarray] | None = None

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), (self._folder, self._shape, self.settings)

    def keeping(
        self, batches: Callable[[Reading], Iterator[Tensor]], count: int
    ) -> Iterator[Tensor]:
        """The same batches, of `count` images in all, written down on their way.

        Images to whose pixels something was done are left out, so that it is told when they are
        encoded; figures depend on nothing here, so a full disk ends nothing.
        """
        reading = Reading()
        if count * int(np.prod(self._shape)) > MOST_BYTES:
            yield from batches(reading)
            return
        kept: list[str] = []
        told, room = 0, self._begin()
        for pixel_BCHW in batches(reading):
            before, told = told, reading.notes.total()
            if room and told == before:
                room = self._append(pixel_BCHW)
                kept += reading.hashes[-len(pixel_BCHW) :] if room else []
            yield pixel_BCHW
        if kept and room:
            self._finish(kept)

    def find(self, content: str) -> Tensor | None:
        """pixel_CHW of an image with this hash, if it is there."""
        if self._known is None:
            self._known = self._load()
        index, pixel_NCHW = self._known
        row = index.get(content.encode())
        return None if row is None else torch.from_numpy(pixel_NCHW[row].copy())

    def _begin(self) -> bool:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name in (HASHES, PIXELS):
                (self._folder / name).unlink(missing_ok=True)
        except OSError:
            return False
        return True

    def _append(self, pixel_BCHW: Tensor) -> bool:
        try:
            with (self._folder / PIXELS).open("ab") as file:
                file.write(pixel_BCHW.contiguous().numpy().tobytes())
        except OSError:
            (self._folder / PIXELS).unlink(missing_ok=True)  # gives the room back
            return False
        return True

    def _finish(self, hashes: list[str]) -> None:
        """Without the hashes the pixels are not found: they come last."""
        try:
            np.save(self._folder / HASHES, np.array(hashes, dtype="S32"))
        except OSError:
            (self._folder / HASHES).unlink(missing_ok=True)

    def _load(self) -> tuple[dict[bytes, int], np.ndarray]:
        try:
            hash_N = np.load(self._folder / HASHES)
            shape = len(hash_N), *self._shape
            pixel_NCHW = np.memmap(self._folder / PIXELS, np.uint8, "r", shape=shape)
        except (OSError, ValueError):  # another machine, or no room
            return {}, np.zeros((0, *self._shape), np.uint8)
        return {content: row for row, content in enumerate(hash_N.tolist())}, pixel_NCHW
