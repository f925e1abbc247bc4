"""Samples as one file for other people's evaluators: the .npz of ADM's sampling scripts.

Images are written batch by batch, as they are drawn: 50,000 of 256 pixels are 9.8 GB, and none of
it waits in memory.

Shape letters: N images, B batch, C channels, H height, W width.
"""

import glob
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.errors import InputError
from common.files.atomic import write_atomically
from common.perceptual.classifier import as_rgb
from deploy.console.progress import Bar

STALE_SECONDS = 3600
"""A file to which nothing was added for so long is not being written any more."""
MEMBERS = "arr_0.npy", "arr_1.npy"
"""Names that np.savez gives to what it is handed without names: images, then labels."""


def shuffled(label_N: Tensor, seed: int) -> Tensor:
    """The same labels in an order that is a function of the seed.

    ADM's evaluator takes the Inception score of splits of 5,000 consecutive images: sorted by
    class, a split would hold few classes.
    """
    return label_N[torch.randperm(len(label_N), generator=torch.Generator().manual_seed(seed))]


def counted(batches: Iterable[Tensor], bar: Bar) -> Iterator[Tensor]:
    """The same batches; `bar` shows how many images have passed."""
    done = 0
    for pixel_BCHW in batches:
        done += len(pixel_BCHW)
        bar.show(done, {})
        yield pixel_BCHW


def save_npz(path: Path, batches: Iterable[Tensor], label_N: Tensor, side: int) -> None:
    """arr_0: uint8 (N, side, side, 3); arr_1: the labels, int64 (docs/backbones.md, "Evaluation
    protocol").

    `batches` are uint8 pixel_BCHW, N images in all; nothing is drawn before the disk was asked for
    the room.

    Raises:
        InputError: the disk has no room; `path` is as it was before.
    """
    shape = len(label_N), side, side, 3
    _sweep(path)
    require_room(path, len(label_N), side)

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            _write_images(archive, batches, shape)
            with archive.open(MEMBERS[1], "w", force_zip64=True) as member:
                np.lib.format.write_array(member, label_N.numpy(), allow_pickle=False)

    write_atomically(path, write)


def _write_images(
    archive: zipfile.ZipFile, batches: Iterable[Tensor], shape: tuple[int, ...]
) -> None:
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
    written = 0
    with archive.open(MEMBERS[0], "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for pixel_BCHW in batches:
            pixel_BHWC = as_rgb(pixel_BCHW).permute(0, 2, 3, 1).contiguous().numpy()
            assert pixel_BHWC.shape[1:] == shape[1:], "images of another side than announced"
            member.write(pixel_BHWC.data.cast("B"))
            written += len(pixel_BHWC)
    assert written == shape[0], "fewer or more images than labels"


def require_room(path: Path, images: int, side: int) -> None:
    """Refuse before hours of sampling what would fill the disk.

    Raises:
        InputError: an .npz of so many images is larger than what is free.
    """
    size = images * (3 * side**2 + 8)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(
            f"{path}: needs {size / 1e9:,.1f} GB, but {folder} has {free / 1e9:,.1f} GB free; free "
            "some space, choose another --to or fewer images"
        )


def _sweep(path: Path) -> None:
    """Remove what killed commands left half-written of this very file: it may be gigabytes."""
    for half in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        number = half.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        with suppress(OSError):
            if number.isdecimal() and time.time() - half.stat().st_mtime > STALE_SECONDS:
                half.unlink()
