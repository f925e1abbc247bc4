"""Sheets of samples: the right images in the right rows, names that fit, nothing smoothed."""

import numpy as np
import pytest
import torch

from common.images.opening import ImagesConfig, open_images
from deploy.report.grids import (
    CELL_PIXELS,
    GAP,
    LABEL_HEIGHT,
    LABEL_WIDTH,
    PANEL_GAP,
    by_class,
    class_sheet,
    grid,
    real_by_class,
    side_by_side,
    spread,
)


@pytest.mark.parametrize(
    ("total", "limit", "wanted"),
    [
        (3, 20, [0, 1, 2]),
        (1000, 5, [0, 250, 500, 749, 999]),
        (1000, 1, [0]),
        (20, 20, list(range(20))),
    ],
)
def test_some_of_many_classes_are_chosen_evenly(total, limit, wanted):
    assert spread(total, limit) == wanted


def greys(*levels, side=12, channels=1):
    level_N = torch.tensor(levels, dtype=torch.uint8)
    return level_N[:, None, None, None].expand(-1, channels, side, side)


def panel(sheet, left, row, column, cell=CELL_PIXELS):
    """The pixels of one cell whose panel begins at `left`."""
    x = left + GAP + column * (cell + GAP)
    y = LABEL_HEIGHT + GAP + row * (cell + GAP)
    return np.asarray(sheet)[y : y + cell, x : x + cell]


def test_a_sheet_has_a_row_per_class_and_its_images_in_order():
    label_N = torch.tensor([2, 0, 2, 0, 2])
    rows = by_class(greys(10, 20, 30, 40, 50), label_N, [0, 1, 2], 2)
    assert [images[:, 0, 0, 0].tolist() for images in rows] == [[20, 40], [], [10, 30]]
    sheet = class_sheet(["", "", ""], {"": rows})
    left = PANEL_GAP
    wanted = {(0, 0): 20, (0, 1): 40, (2, 0): 10, (2, 1): 30, (1, 0): 255, (1, 1): 255}
    for (row, column), level in wanted.items():
        assert (panel(sheet, left, row, column) == level).all(), (row, column)


def test_small_images_are_enlarged_pixel_by_pixel_and_large_ones_reduced():
    image = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8) * 4
    wanted = np.repeat(np.repeat(image[0, 0].numpy(), 6, 0), 6, 1)
    for sheet, top in ((grid(image, 1), 0), (class_sheet([""], {"": [image]}), LABEL_HEIGHT)):
        left = 0 if top == 0 else PANEL_GAP
        cell = np.asarray(sheet)[top + GAP : top + GAP + 48, left + GAP : left + GAP + 48]
        assert np.array_equal(cell, np.repeat(wanted[..., None], 3, 2))
    large = class_sheet([""], {"": [greys(7, side=256, channels=3)]}, most_pixels=64)
    assert large.size == (PANEL_GAP + 64 + 3 * GAP, LABEL_HEIGHT + 64 + 2 * GAP)
    assert (panel(large, PANEL_GAP, 0, 0, 64) == 7).all()


def test_names_of_any_length_and_alphabet_leave_the_images_alone():
    rows = [greys(0), greys(0), greys(0)]
    short = class_sheet(["a", "b", "c"], {"real": rows, "teacher": rows})
    names = ["word " * 100, "Ä\nи\tж", "<script>"]
    long = class_sheet(names, {"real": rows, "teacher": rows})
    assert long.height == short.height
    assert long.width - short.width <= LABEL_WIDTH
    images = [np.asarray(sheet)[LABEL_HEIGHT:] for sheet in (short, long)]
    black = [(pixels == 0).all(2).sum(0) == 3 * CELL_PIXELS for pixels in images]
    assert black[0].sum() == black[1].sum() == 2 * CELL_PIXELS, "all six cells are whole"
    ink = np.asarray(long.convert("L"))[LABEL_HEIGHT + GAP :, :LABEL_WIDTH]
    heights = np.split(ink[: 3 * (CELL_PIXELS + GAP)], 3)
    assert all((cell < 128).any() for cell in heights), "every row has its name"


def test_titles_of_narrow_panels_do_not_run_into_each_other():
    one = greys(200)
    titles = ["student before", "student after"]
    single = [class_sheet([""], {title: [one]}) for title in titles]
    both = class_sheet([""], {title: [one] for title in titles})
    assert both.width == sum(sheet.width for sheet in single) - GAP
    beside = side_by_side({title: grid(one, 1) for title in titles})
    assert beside.width > 2 * (CELL_PIXELS + 2 * GAP) + PANEL_GAP


def test_real_images_of_a_class_are_its_own():
    source = open_images(ImagesConfig(), "test")
    found = real_by_class(source, [3, 7], 4)
    everything = source.pixels()
    for label, images in zip([3, 7], found, strict=True):
        assert torch.equal(images, everything[source.label_N == label][:4])
    assert [len(images) for images in real_by_class(source, [11], 4)] == [0]
