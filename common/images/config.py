"""The `[images]` section."""

from pathlib import Path
from typing import Annotated, Literal, Self

from PIL import ImageColor
from pydantic import Field, field_validator, model_validator

from common.config.quantities import Classes, Side
from common.config.schema import Config, UserPath
from common.images.listing import matches

Split = Literal["train", "test"]
MOST_CLASSES = 10**6
Label = Annotated[int, Field(ge=0, lt=MOST_CLASSES)]


class ImagesConfig(Config):
    kind: Literal["digits", "folder", "parquet"] = "digits"
    """digits: scikit-learn's 1,797 digits; folder: one folder per class; parquet: image, label."""
    train: UserPath | tuple[UserPath, ...] | None = None
    """Training images: a folder of class folders, Parquet files or a folder of them; a path, one
    with * and ?, or a list. Of shards train-* and test-* in one folder those of the split."""
    test: UserPath | tuple[UserPath, ...] | None = None
    """Held-out images in the same layout; optional for folder and parquet."""
    size: Side = 8
    """Side in pixels after the ADM centre crop."""
    channels: Literal[1, 3] = 1
    """1 converts to grey, 3 to RGB."""
    classes: Classes | None = None
    """Number of classes; by default what the training images show."""
    class_order: Literal["torchvision", "numeric"] = "torchvision"
    """How class folders are numbered: sorted as text (1, 10, 2), or as the numbers they are."""
    class_ids: UserPath | tuple[str, ...] | dict[str, Label] | None = None
    """Classes of published weights, where the images show fewer: a text file with a name per line
    in order of id (such as ImageNet's LOC_synset_mapping.txt), a list, or a table from name to id
    (with `classes`). Names are those of class folders, or Parquet's labels."""
    first_label: Label = 0
    """What Parquet's labels start at; 1 for sets that count from one."""
    image_column: str | None = None
    """Column of a Parquet file: bytes, paths or both; by default image, img or the only such."""
    label_column: str | None = None
    """Column of a Parquet file: integers; by default label, or the only such."""
    background: str = "white"
    """Colour under transparent pixels: a name of CSS or #rrggbb."""
    exif: Literal["apply", "ignore"] = "apply"
    """apply turns photographs upright; ignore leaves them as stored, as torchvision does and the
    published codes were made."""

    @field_validator("background")
    @classmethod
    def _background_is_opaque(cls, value: str) -> str:
        try:
            colour = ImageColor.getrgb(value)
        except ValueError:
            raise ValueError("is no colour; give a name such as white, or #rrggbb") from None
        if len(colour) != 3:
            raise ValueError("is itself transparent; give a name such as white, or #rrggbb")
        return value

    @model_validator(mode="after")
    def _a_table_of_ids_has_an_end(self) -> Self:
        if isinstance(self.class_ids, dict) and self.classes is None:
            raise ValueError(
                "images.class_ids is a table: set images.classes to the number of classes that the "
                "published weights have"
            )
        return self

    @property
    def has_test(self) -> bool:
        """Whether there are held-out images."""
        return self.kind == "digits" or self.test is not None

    @property
    def is_there(self) -> bool:
        """Whether the training images can be opened; where not, a plan is all that can be made."""
        return self.kind == "digits" or bool(self.given("train") and not self.missing("train"))

    def given(self, split: Split) -> tuple[Path, ...]:
        """The paths of a split as they were given; none where it is not set."""
        paths = self.train if split == "train" else self.test
        return (paths,) if isinstance(paths, Path) else paths or ()

    def missing(self, split: Split) -> tuple[Path, ...]:
        """Given paths that name nothing which is there."""
        return tuple(
            path for path in self.given(split) if not any(found.exists() for found in matches(path))
        )
