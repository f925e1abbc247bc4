"""LlamaGen's codes of ImageNet (docs/backbones.md, "LlamaGen codes"): `{path}/imagenet{size}_codes/
{i}.npy`, (1, A, T), and `{path}/imagenet{size}_labels/{i}.npy`, (1,).

Shape letters: A variants of an image, L slots (the files' T), P folders.
"""

from pathlib import Path
from typing import Self

import numpy as np

from common.data.published_codes import (
    Codes,
    CodesConfig,
    array_names,
    existing_folder,
    is_number,
    load_array,
)
from common.data.token_rows import TokenRows
from common.errors import InputError
from common.images.config import ImagesConfig
from common.spec import SequenceSpec


class Config(CodesConfig):
    def open(self, images: ImagesConfig, shape: SequenceSpec) -> TokenRows:
        return LlamaGenCodes(self, shape)

    @classmethod
    def tiny(cls, folder: Path, shape: SequenceSpec) -> Self:
        for what, row in (("codes", np.zeros((1, 2, shape.length), int)), ("labels", [0])):
            (folder / f"imagenet8_{what}").mkdir()
            for index in range(3):
                values = np.array(row) + index % 2
                np.save(folder / f"imagenet8_{what}" / f"{index}.npy", values)
        return cls(paths=(folder,))


class LlamaGenCodes(Codes):
    """One or several folders of `extract_codes_c2i.py`; several add up their variants."""

    def __init__(self, config: CodesConfig, shape: SequenceSpec) -> None:
        self._codes = [_codes_folder(path) for path in config.paths]
        self._labels = [
            folder.with_name(folder.name.removesuffix("_codes") + "_labels")
            for folder in self._codes
        ]
        counts = {folder: _count(folder) for folder in [*self._codes, *self._labels]}
        fewest, most = min(counts, key=lambda f: counts[f]), max(counts, key=lambda f: counts[f])
        if counts[fewest] != counts[most]:
            raise InputError(
                f"{fewest / f'{counts[fewest]}.npy'}: no such file, but {most} goes up to "
                f"{counts[most] - 1}.npy; the folders must hold the same images"
            )
        super().__init__(config, shape, range(counts[most]))
        each = [self._first(folder / "0.npy", leading=(1,)) for folder in self._codes]
        for folder, variants in zip(self._codes, each, strict=True):
            _require_same("variants per image", (folder, variants), (self._codes[0], each[0]))
        self._each = each[0]
        self.variants = sum(each)
        self.name = ", ".join(str(folder) for folder in self._codes)

    def _files(self, item: int) -> list[Path]:
        return [folder / f"{item}.npy" for folder in [*self._codes, *self._labels]]

    def _row(self, item: int) -> tuple[np.ndarray, int]:
        shape = (1, self._each, self._shape.length)
        token_PAL = [self._tokens(folder / f"{item}.npy", shape)[0] for folder in self._codes]
        files = [folder / f"{item}.npy" for folder in self._labels]
        labels = [self._label(file, _label_in(file)) for file in files]
        for file, label in zip(files, labels, strict=True):
            _require_same("label", (file, label), (files[0], labels[0]))
        return np.concatenate(token_PAL), labels[0]


def _codes_folder(path: Path) -> Path:
    found = sorted(
        entry for entry in existing_folder(path).glob("imagenet*_codes") if entry.is_dir()
    )
    if len(found) != 1:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{path}: expected one folder imagenet<size>_codes, found {there}")
    return found[0]


def _count(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... a folder holds."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; labels are expected beside the codes")
    numbers = []
    for name in array_names(folder):
        stem = name.removesuffix(".npy")
        if not is_number(stem):
            raise InputError(f"{folder / name}: no image number; expected 0.npy, 1.npy, ...")
        numbers.append(int(stem))
    gaps = np.flatnonzero(np.sort(np.array(numbers)) != np.arange(len(numbers)))
    if len(gaps):
        raise InputError(
            f"{folder / f'{gaps[0]}.npy'}: no such file, but numbers go up to {max(numbers)}; "
            "extract the missing images"
        )
    return len(numbers)


def _require_same(what: str, this: tuple[Path, int], that: tuple[Path, int]) -> None:
    if this[1] != that[1]:
        raise InputError(
            f"{this[0]}: {what} {this[1]}, but {that[0]} has {that[1]}; both must be of the same "
            "images"
        )


def _label_in(file: Path) -> int:
    array = load_array(file)
    if array.shape != (1,):
        raise InputError(f"{file}: has shape {array.shape}, expected one label, shape (1,)")
    return int(array[0])
