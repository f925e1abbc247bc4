"""The contract of a token source: the `[tokens]` section, and how its kind opens rows.

Tokens are of the run's tokenizer, whatever their source: it turns samples into pixels. Held-out
images, where there are any, are encoded by it, unless a source says otherwise.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field

from common.config.plugins import PluginConfig
from common.config.quantities import Classes, Count, Gpus, Processes, SomeCpus
from common.config.schema import UserPath
from common.data.crops import Crops
from common.data.image_rows import ImageRows
from common.data.token_rows import TokenRows
from common.images.config import ImagesConfig
from common.images.opening import open_images
from common.spec import SequenceSpec


class TokenSourceConfig(PluginConfig, ABC):
    """Which tokens of the training images, and how `varkd tokenize` makes them."""

    doing: ClassVar[str] = "read codes"
    """What `varkd tokenize` says that it does meanwhile."""
    harmless: ClassVar[frozenset[str]] = frozenset(
        {"part_images", "workers", "cpus", "gpus", "device"}
    )
    """Fields that change where and when tokens are made, not which."""

    has_pixels: ClassVar[bool] = False
    """Whether its training rows are views of `images.train` (`ImageRows`)."""

    paths: tuple[UserPath, ...] = ()
    """What the kind reads: folders of published codes; the variants of several LlamaGen folders are
    joined."""
    classes: Classes | None = None
    """Number of classes of published codes; by default one more than their largest label."""
    crops: Crops = "center"
    """Views of every training image: center, flip (and its mirror image) or ten_crop."""
    crop_range: Annotated[float, Field(ge=1, le=16)] = 1.1
    """Side that ten crops are cut from, in multiples of images.size; published: 1.1 and 1.05."""
    part_images: Count = 1024
    """Images per part; an interrupted command goes on after its finished parts."""
    workers: Processes = 2
    """Most encoding actors at a time; fewer start where the cluster has less room."""
    cpus: SomeCpus = 1
    """Logical CPUs reserved per actor, and threads that it computes with."""
    gpus: Gpus = 0
    """GPUs reserved per actor; with a fraction, several actors' reading keeps one GPU busy."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where images are encoded."""

    @abstractmethod
    def open(self, images: ImagesConfig, shape: SequenceSpec) -> TokenRows:
        """List the training rows; `shape` is the tokenizer's (0 classes), `images` the section.

        Raises:
            InputError: something is missing or laid out differently, or is of other tokens than
                the tokenizer's; the message names the file.
        """

    def open_test(self, images: ImagesConfig) -> TokenRows | None:
        """List the held-out rows; by default `images.test`, encoded in the middle.

        Raises:
            InputError: as `open`.
        """
        if images.test is None:
            return None
        return ImageRows(open_images(images, "test"), images.size)

    @property
    @abstractmethod
    def variants(self) -> int:
        """Sequences per image, as far as one knows before anything is read; for plans."""

    def count(self, images: ImagesConfig) -> int | None:
        """Training rows, for plans; None where only reading everything would tell.

        Raises:
            InputError: as `open`.
        """
        return None

    @classmethod
    @abstractmethod
    def tiny(cls, folder: Path, shape: SequenceSpec) -> Self:
        """The smallest useful instance, over files that this writes to `folder`; contract tests
        read it."""
