"""The images behind a run's image indices: those that its token dataset was encoded from.

Shape letters: B indices, R rows, A views of an image, C channels, S side.
"""

from functools import cached_property

import torch
from torch import Tensor

from common.data.image_rows import ImageRows
from common.data.token_source import TokenSourceConfig
from common.data.tokens import TokenDataset
from common.errors import InputError
from common.images.config import ImagesConfig
from common.randomness import Draws
from common.spec import SequenceSpec


class TrainingImages:
    """Travels as two sections of the config; the images are opened where they are looked at."""

    def __init__(
        self, images: ImagesConfig, tokens: TokenSourceConfig, shape: SequenceSpec, draws: Draws
    ) -> None:
        """`shape` is the tokens'; `draws` are those by which workers read the dataset."""
        self._images, self._tokens, self._shape = images, tokens, shape
        self._draws = draws

    def pixels(self, index_B: Tensor) -> Tensor:
        """uint8 pixel_BCSS: the very view whose codes `TokenDataset.pick` gives for each condition;
        what several share is read once.

        Raises:
            InputError: an image is missing or damaged.
        """
        indices = index_B.tolist()
        rows = [self._draws.row(index) for index in indices]
        views = [self._draws.view(index, self._tokens.variants) for index in indices]
        wanted = sorted(set(rows))
        pixel_RACSS = self.opened.views(wanted)
        number_of = {row: number for number, row in enumerate(wanted)}
        return pixel_RACSS[torch.tensor([number_of[row] for row in rows]), torch.tensor(views)]

    @cached_property
    def opened(self) -> ImageRows:
        """The rows of the dataset, where they were encoded from.

        Raises:
            InputError: they are not there any more.
        """
        rows = self._tokens.open(self._images, self._shape)
        assert isinstance(rows, ImageRows)
        return rows


def require_images(images: ImagesConfig, tokens: TokenSourceConfig, data: TokenDataset) -> None:
    """Refuse images that `data` was not made of, as far as their number, views and labels say; none
    is read.

    Raises:
        InputError: they are others, or are not there.
    """
    remedy = "set the target of scorers to codes, which needs no images"
    try:
        found_N = TrainingImages(images, tokens, data.spec, Draws(0, len(data))).opened.label_N
    except InputError as error:
        raise InputError(f"a scorer's target is pixels: {error}; or {remedy}") from None
    if (len(found_N), tokens.variants) != (len(data), data.variants):
        wrong = (
            f"{len(found_N):,} now in {tokens.variants} views, and {len(data):,} in "
            f"{data.variants} were encoded"
        )
    elif not torch.equal(found_N, data.label_N):
        wrong = "of other labels now than those that were encoded"
    else:
        return
    raise InputError(
        f"a scorer's target is pixels, but the training images are {wrong}; encode them again with "
        f"`varkd tokenize`, or {remedy}"
    )
