"""The images of `[images]`, encoded by the run's tokenizer."""

from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator

from common.data.crops import VIEWS, source_side
from common.data.image_rows import ImageRows
from common.data.token_rows import TokenRows
from common.data.token_source import TokenSourceConfig
from common.images.config import ImagesConfig
from common.images.opening import open_images
from common.spec import SequenceSpec


class Config(TokenSourceConfig):
    doing: ClassVar[str] = "encode"
    has_pixels: ClassVar[bool] = True

    @model_validator(mode="after")
    def _nothing_else_is_read(self) -> Self:
        if self.paths or self.classes:
            raise ValueError("paths and classes are for published codes; set kind, or drop them")
        return self

    def open(self, images: ImagesConfig, shape: SequenceSpec) -> TokenRows:
        side = source_side(images.size, self.crops, self.crop_range)
        source = open_images(images.model_copy(update={"size": side}), "train")
        return ImageRows(source, images.size, self.crops)

    def open_test(self, images: ImagesConfig) -> TokenRows | None:
        return ImageRows(open_images(images, "test"), images.size) if images.has_test else None

    @property
    def variants(self) -> int:
        return VIEWS[self.crops]

    def count(self, images: ImagesConfig) -> int | None:
        return len(open_images(images, "train")) if images.is_there else None

    @classmethod
    def tiny(cls, folder: Path, shape: SequenceSpec) -> Self:
        return cls(crops="flip")  # of the digits, which `images` are by default
