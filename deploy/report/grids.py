"""Pictures for people: sample grids, sheets with a row per class, image files."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.files.atomic import write_atomically
from common.images.opening import ImageSource
from common.perceptual.classifier import as_rgb

CELL_PIXELS = 48
"""Side to which smaller images are enlarged, about."""
GAP = 2
PANEL_GAP = 14
LABEL_HEIGHT = 18
LABEL_WIDTH = 150
"""A class name takes no more room than this."""
FONT_PIXELS = 13


def spread(total: int, limit: int) -> list[int]:
    """`limit` of the numbers below `total`, evenly from the first to the last; all if they fit."""
    if total <= limit:
        return list(range(total))
    if limit == 1:
        return [0]
    return [round(place * (total - 1) / (limit - 1)) for place in range(limit)]


def by_class(
    pixel_NCHW: Tensor, label_N: Tensor, classes: Sequence[int], per_class: int
) -> list[Tensor]:
    """For each of `classes` its first images, `per_class` at most, as one pixel_PCHW."""
    return [pixel_NCHW[(label_N == label).nonzero().flatten()[:per_class]] for label in classes]


def real_by_class(source: ImageSource, classes: Sequence[int], per_class: int) -> list[Tensor]:
    """The same of real images; no others are read, and a class may have none."""
    rows = {
        label: (source.label_N == label).nonzero().flatten()[:per_class].tolist()
        for label in classes
    }
    wanted = sorted(row for found in rows.values() for row in found)
    if not wanted:
        return [torch.zeros(0, 1, 1, 1, dtype=torch.uint8) for _ in classes]
    chosen = source.subset(wanted)
    return by_class(torch.cat(list(chosen.batches(256))), chosen.label_N, classes, per_class)


def grid(pixel_NCHW: Tensor, columns: int) -> Image.Image:
    """Images in rows of `columns`, small ones enlarged without smoothing, on white."""
    cell = _cell_side(pixel_NCHW.shape[-1], None)
    rows = -(-len(pixel_NCHW) // columns)
    size = columns * (cell + GAP) + GAP, rows * (cell + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    for index, tile in enumerate(_tiles(pixel_NCHW, cell)):
        row, column = divmod(index, columns)
        sheet.paste(tile, (GAP + column * (cell + GAP), GAP + row * (cell + GAP)))
    return sheet


def class_sheet(
    names: Sequence[str],
    panels: Mapping[str, Sequence[Tensor]],
    *,
    most_pixels: int | None = None,
) -> Image.Image:
    """A row per class with its name, and titled panels side by side, such as real images, teacher
    and student.

    Args:
        names: of the classes, one per row; long ones are cut.
        panels: by title, a uint8 pixel_PCHW per row; P may differ and may be 0.
        most_pixels: side to which larger images are reduced.
    """
    images = [pixel_PCHW for rows in panels.values() for pixel_PCHW in rows if len(pixel_PCHW)]
    cell = _cell_side(max((some.shape[-1] for some in images), default=1), most_pixels)
    label_width = max((_length(_cut(name, LABEL_WIDTH)) for name in names), default=0)
    drawn = {title: _panel(rows, cell) for title, rows in panels.items()}
    widths = {title: max(panel.width, _length(title)) for title, panel in drawn.items()}
    width = label_width + sum(PANEL_GAP + own for own in widths.values())
    sheet = Image.new("RGB", (width + GAP, LABEL_HEIGHT + len(names) * (cell + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(names):
        middle = LABEL_HEIGHT + GAP + row * (cell + GAP) + cell // 2
        text = _cut(name, LABEL_WIDTH)
        pen.text((label_width, middle), text, fill="black", font=_font(), anchor="rm")
    left = label_width + PANEL_GAP
    for title, panel in drawn.items():
        pen.text((left + GAP, 1), title, fill="black", font=_font())
        sheet.paste(panel, (left, LABEL_HEIGHT))
        left += widths[title] + PANEL_GAP
    return sheet


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Titled panels next to each other."""
    widths = {title: max(panel.width, _length(title)) for title, panel in panels.items()}
    height = max(panel.height for panel in panels.values()) + LABEL_HEIGHT
    size = sum(widths.values()) + PANEL_GAP * (len(panels) - 1), height
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for title, panel in panels.items():
        pen.text((left + GAP, 1), title, fill="black", font=_font())
        sheet.paste(panel, (left, LABEL_HEIGHT))
        left += widths[title] + PANEL_GAP
    return sheet


def save_png(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data.getvalue())

    write_atomically(path, write)


def _panel(rows: Sequence[Tensor], cell: int) -> Image.Image:
    """Rows of images, which may differ in length."""
    columns = max((len(pixel_PCHW) for pixel_PCHW in rows), default=0)
    size = columns * (cell + GAP) + GAP, len(rows) * (cell + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    for row, pixel_PCHW in enumerate(rows):
        for column, tile in enumerate(_tiles(pixel_PCHW, cell)):
            sheet.paste(tile, (GAP + column * (cell + GAP), GAP + row * (cell + GAP)))
    return sheet


def _tiles(pixel_NCHW: Tensor, cell: int) -> list[Image.Image]:
    """Pixels stay squares where images are enlarged."""
    larger = pixel_NCHW.shape[-1] > cell
    way = Image.Resampling.LANCZOS if larger else Image.Resampling.NEAREST
    return [
        Image.fromarray(pixel_3HW.permute(1, 2, 0).contiguous().numpy()).resize((cell, cell), way)
        for pixel_3HW in as_rgb(pixel_NCHW)
    ]


def _cell_side(side: int, most: int | None) -> int:
    cell = side * max(1, round(CELL_PIXELS / side))
    return cell if most is None else min(cell, most)


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's: it has Latin, Greek, Cyrillic and Arabic letters, Pillow's has Latin alone."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), FONT_PIXELS)


def _length(text: str) -> int:
    return -int(-_font().getlength(_line(text)) // 1)


def _cut(text: str, width: int) -> str:
    """On one line, and with an ellipsis where it is longer than `width` pixels."""
    text = _line(text)
    if _length(text) <= width:
        return text
    while text and _length(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _line(text: str) -> str:
    return " ".join(text.split())
