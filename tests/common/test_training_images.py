"""Pixels by image index: the very views that a run's tokens were encoded from."""

import pytest
import torch

from common.data.token_sources import images as image_tokens
from common.data.tokens import TokenDataset
from common.data.training_images import TrainingImages, require_images
from common.errors import InputError
from common.images.config import ImagesConfig
from common.images.contents import Reading
from common.randomness import Draws
from common.spec import SequenceSpec

SPEC = SequenceSpec(256, 64, (8, 8), 10)
FLIPPED = image_tokens.Config(crops="flip")


class Verbatim:
    """A code for every grey value."""

    def encode(self, pixel_BCHW):
        return pixel_BCHW.flatten(1).long()

    def measure(self, pixel_BCHW, token_BL):
        return None


@pytest.fixture(scope="module")
def digits():
    rows = FLIPPED.open(ImagesConfig(), SPEC)
    token_NAL, label_N = rows.read(Verbatim(), Reading(), lambda count: None)
    return TokenDataset(token_NAL, label_N, SPEC, rows.classes, "")


def test_an_index_has_the_image_and_the_view_of_its_codes(digits):
    draws = Draws(7, len(digits))
    index_B = torch.tensor([5, 2, 5, 3000, 11, 4, 9, 10])
    _, cell_BL = digits.pick(index_B.tolist(), draws, 0.0)
    found = TrainingImages(ImagesConfig(), FLIPPED, SPEC, draws).pixels(index_B)
    assert found.shape == (8, 1, 8, 8)
    assert torch.equal(found.flatten(1).long(), cell_BL)
    assert {draws.view(index, 2) for index in index_B.tolist()} == {0, 1}


def test_other_images_than_those_of_the_tokens_are_refused(digits, tmp_path):
    require_images(ImagesConfig(), FLIPPED, digits)
    with pytest.raises(InputError, match="1,438 now in 1 views, and 1,438 in 2 were encoded"):
        require_images(ImagesConfig(), image_tokens.Config(), digits)
    others = ImagesConfig(class_ids={str(digit): digit + 2 for digit in range(10)}, classes=12)
    with pytest.raises(
        InputError, match=r"of other labels now.*set the target of scorers to codes"
    ):
        require_images(others, FLIPPED, digits)
    gone = ImagesConfig(kind="folder", train=tmp_path / "gone")
    with pytest.raises(InputError, match=r"target is pixels: images.train.*does not exist"):
        require_images(gone, FLIPPED, digits)
