"""Pictures for people: sample grids and image files."""

import io
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageDraw
from torch import Tensor

from common.checkpoint import write_atomically
from rollout.features import as_rgb

CELL_PIXELS = 48
GAP = 2
LABEL_HEIGHT = 18


def grid(pixel_NCHW: Tensor, columns: int) -> Image.Image:
    """Images in rows of `columns`, small ones enlarged without smoothing, on white."""
    rgb = as_rgb(pixel_NCHW)
    side = rgb.shape[-1]
    scale = max(1, round(CELL_PIXELS / side))
    cell = side * scale
    rows = -(-len(rgb) // columns)
    size = columns * (cell + GAP) + GAP, rows * (cell + GAP) + GAP
    sheet = Image.new("RGB", size, "white")
    for index, pixel_3HW in enumerate(rgb):
        tile = Image.fromarray(pixel_3HW.permute(1, 2, 0).contiguous().numpy())
        row, column = divmod(index, columns)
        corner = GAP + column * (cell + GAP), GAP + row * (cell + GAP)
        sheet.paste(tile.resize((cell, cell), Image.Resampling.BICUBIC), corner)
    return sheet


def side_by_side(panels: Mapping[str, Image.Image]) -> Image.Image:
    """Titled panels next to each other."""
    gap = 14
    width = sum(panel.width for panel in panels.values()) + gap * (len(panels) - 1)
    height = max(panel.height for panel in panels.values()) + LABEL_HEIGHT
    sheet = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(sheet)
    left = 0
    for title, panel in panels.items():
        pen.text((left + 2, 3), title, fill="black")
        sheet.paste(panel, (left, LABEL_HEIGHT))
        left += panel.width + gap
    return sheet


def save_png(path: Path, image: Image.Image) -> None:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)

    def write(temporary: Path) -> None:
        temporary.write_bytes(data.getvalue())

    write_atomically(path, write)


def save_npz(path: Path, pixel_NCHW: Tensor) -> None:
    """arr_0: uint8 (N, H, W, 3), the layout of the ADM evaluator (backbones.md 6)."""
    import numpy as np

    array = as_rgb(pixel_NCHW).permute(0, 2, 3, 1).contiguous().numpy()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez_compressed(handle, arr_0=array)

    write_atomically(path, write)
