"""Images as rows of a token dataset: cut into views, encoded by the run's tokenizer.

Shape letters: A views of an image, B images of a batch, C channels, H height, W width, S side of a
view, L slots, n rows.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from common.data.crops import VIEWS, Crops, cut_views
from common.data.token_rows import PixelEncoder, TokenRows, Watch
from common.images.contents import Reading
from common.images.decoded import DecodedImages
from common.images.source import EncodedImages, ImageSource

BATCH = 64
"""Images that are decoded together."""


class ImageRows(TokenRows):
    """Every view of every image."""

    def __init__(self, source: ImageSource, size: int, crops: Crops = "center") -> None:
        """`size`: side of an encoded view in pixels."""
        self._source, self._size = source, size
        self._crops: Crops = crops
        self.name, self.classes = source.name, source.classes

    def __len__(self) -> int:
        return len(self._source)

    def use(self, decoded: DecodedImages) -> None:
        """Take pixels from there, where they are those that these settings give."""
        if isinstance(self._source, EncodedImages) and self._source.decoding == decoded.settings:
            self._source.decoded = decoded

    def subset(self, rows: range) -> Self:
        part = copy.copy(self)
        part._source = self._source.subset(rows)
        return part

    def files(self) -> Sequence[Path]:
        return self._source.files()

    def contents(self) -> Iterator[tuple[str, str]]:
        return self._source.contents()

    def read(self, encoder: PixelEncoder, reading: Reading, watch: Watch) -> tuple[Tensor, Tensor]:
        tokens: list[Tensor] = []
        for pixel_BCHW in self._source.batches(BATCH, reading):
            watch(sum(len(token) for token in tokens))
            pixel_BACSS = cut_views(pixel_BCHW, self._crops, self._size)
            token_BL = encoder.encode(pixel_BACSS.flatten(0, 1))
            tokens.append(token_BL.unflatten(0, (-1, VIEWS[self._crops])))
            if len(tokens) == 1:
                encoder.measure(pixel_BACSS[:, 0], tokens[0][:, 0])
        return torch.cat(tokens), self._source.label_N

    def views(self, rows: Sequence[int]) -> Tensor:
        """uint8 pixel_BACSS of some rows, by increasing number."""
        pixels = list(self._source.subset(rows).batches(BATCH))
        return cut_views(torch.cat(pixels), self._crops, self._size)

    @property
    def label_N(self) -> Tensor:
        return self._source.label_N

    def found(self) -> list[str]:
        return self._source.found.lines(self.name)

    def layout(self) -> bytes:
        return self._source.label_N.numpy().tobytes()

    def facts(self, hashes: Iterable[str]) -> dict[str, Any]:
        return {"images": self._source.found.as_dict(), "digest": self._source.identity(hashes)}
