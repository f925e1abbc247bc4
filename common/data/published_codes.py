"""Published codes of ImageNet, read as rows of a token dataset (docs/backbones.md, "LlamaGen
codes").

LlamaGen: `{path}/imagenet{size}_codes/{i}.npy`, (1, A, T), and `.../imagenet{size}_labels/{i}.npy`,
(1,). ARPG: `{path}/{class}/*.npy`, (A, T). Files are small and many, so they are read by threads.

Shape letters: A variants of an image, L slots (the files' T), n rows of a part, P folders.
"""

import copy
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from common.data.tokens import TokensConfig
from common.errors import InputError
from common.images.config import MOST_CLASSES
from common.images.contents import Reading, content_hash
from common.images.listing import is_hidden, printable
from common.spec import SequenceSpec

READERS = 8
"""Threads per process; they wait for the storage more than they compute."""


class Codes(ABC):
    """A finite, ordered set of encoded images in files of their own."""

    variants: int
    name: str

    def __init__(self, config: TokensConfig, shape: SequenceSpec, items: Sequence[Any]) -> None:
        self._classes = config.classes
        self._shape = shape
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def subset(self, rows: range) -> Self:
        """A run of rows; small to send to another process."""
        part = copy.copy(self)
        part._items = self._items[rows.start : rows.stop]
        return part

    def files(self) -> Sequence[Path]:
        return [file for item in self._items for file in self._files(item)]

    def contents(self) -> Iterator[tuple[str, str]]:
        """(where, hash of tokens and label) of every image."""
        for item in self._items:
            token_AL, label = self._row(item)
            yield printable(self._files(item)[0]), _row_hash(token_AL, label)

    def read(self, reading: Reading | None = None) -> tuple[Tensor, Tensor]:
        """(token_nAL, label_n), both int64; `reading` collects what they were read from.

        Raises:
            InputError: a file is missing or damaged, has another shape or type than the first, or
                holds a token or a label out of range; the message names the file.
        """
        reading = Reading() if reading is None else reading

        def read(item: Any) -> tuple[np.ndarray, int]:
            for file in self._files(item):
                reading.opens(file)
            return self._row(item)

        with ThreadPoolExecutor(READERS) as pool:
            rows = list(pool.map(read, self._items))
        reading.hashes += [_row_hash(*row) for row in rows]
        token_nAL = torch.from_numpy(np.stack([token_AL for token_AL, _ in rows]))
        return token_nAL, torch.tensor([label for _, label in rows])

    @abstractmethod
    def _files(self, item: Any) -> list[Path]:
        """Where one image's tokens and label lie."""

    @abstractmethod
    def _row(self, item: Any) -> tuple[np.ndarray, int]:
        """token_AL and label of one image."""

    def _tokens(self, file: Path, shape: tuple[int, ...]) -> np.ndarray:
        array = _load(file)
        if array.shape != shape:
            raise InputError(
                f"{file}: has shape {array.shape}, but the first file has {shape}; extract it again"
            )
        if array.size and not 0 <= array.min() <= array.max() < self._shape.vocab_size:
            raise InputError(
                f"{file}: tokens run from {array.min()} to {array.max()}, but the tokenizer has "
                f"{self._shape.vocab_size} codes; choose the tokenizer that made these codes"
            )
        return array

    def _label(self, file: Path, label: int) -> int:
        most = MOST_CLASSES if self._classes is None else self._classes
        if not 0 <= label < most:
            named = "" if self._classes is None else "tokens.classes "
            limit = "at least 0" if label < 0 else f"below {named}{most}"
            raise InputError(f"{file}: label {label}, expected one {limit}; correct one of them")
        return label

    def _first(self, file: Path, *, leading: tuple[int, ...]) -> int:
        """The number of variants in the first file, after checking how it is laid out."""
        shape = _load(file).shape
        if len(shape) != len(leading) + 2 or shape[: len(leading)] != leading or not shape[-2]:
            expected = "".join(f"{size}, " for size in leading)
            raise InputError(f"{file}: has shape {shape}, expected ({expected}variants, tokens)")
        if shape[-1] != self._shape.length:
            raise InputError(
                f"{file}: holds {shape[-1]} tokens per image, but the tokenizer makes "
                f"{self._shape.length}; set images.size to the size that was encoded"
            )
        return shape[-2]


class LlamaGenCodes(Codes):
    """One or several folders of `extract_codes_c2i.py`; several add up their variants."""

    def __init__(self, config: TokensConfig, shape: SequenceSpec) -> None:
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


class ArpgCodes(Codes):
    """A folder per class, named by its number; files in sorted order."""

    def __init__(self, config: TokensConfig, shape: SequenceSpec) -> None:
        path = _existing(config.paths[0])
        folders = [
            entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name)
        ]
        for folder in folders:
            if not _is_number(folder.name):
                raise InputError(f"{folder}: no class number; expected {path}/<class number>/*.npy")
        if not folders:
            raise InputError(f"{path}: holds no class folders; expected <class number>/*.npy")
        folders.sort(key=lambda folder: int(folder.name))
        super().__init__(config, shape, [(f, name) for f in folders for name in _names_in(f)])
        for folder in folders:
            self._label(folder, int(folder.name))
        folder, name = self._items[0]
        self.variants = self._first(folder / name, leading=())
        self.name = str(path)

    def _files(self, item: tuple[Path, str]) -> list[Path]:
        folder, name = item
        return [folder / name]

    def _row(self, item: tuple[Path, str]) -> tuple[np.ndarray, int]:
        folder, name = item
        shape = (self.variants, self._shape.length)
        return self._tokens(folder / name, shape), int(folder.name)


def open_codes(config: TokensConfig, shape: SequenceSpec) -> Codes:
    """List the files that `[tokens]` names; `shape` is the tokenizer's.

    Raises:
        InputError: a folder is missing or laid out differently, numbers have gaps, a label has no
            file, folders disagree, or the codes are those of another image size.
    """
    kind = LlamaGenCodes if config.kind == "llamagen_codes" else ArpgCodes
    return kind(config, shape)


def _existing(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; tokens.paths must name folders of codes")
    return path


def _codes_folder(path: Path) -> Path:
    found = sorted(entry for entry in _existing(path).glob("imagenet*_codes") if entry.is_dir())
    if len(found) != 1:
        there = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
        raise InputError(f"{path}: expected one folder imagenet<size>_codes, found {there}")
    return found[0]


def _count(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... a folder holds."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; labels are expected beside the codes")
    numbers = []
    for name in _names_in(folder):
        stem = name.removesuffix(".npy")
        if not _is_number(stem):
            raise InputError(f"{folder / name}: no image number; expected 0.npy, 1.npy, ...")
        numbers.append(int(stem))
    gaps = np.flatnonzero(np.sort(np.array(numbers)) != np.arange(len(numbers)))
    if len(gaps):
        raise InputError(
            f"{folder / f'{gaps[0]}.npy'}: no such file, but numbers go up to {max(numbers)}; "
            "extract the missing images"
        )
    return len(numbers)


def _names_in(folder: Path) -> list[str]:
    """The .npy files, sorted.

    Raises:
        InputError: there are none.
    """
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if entry.name.endswith(".npy") and not is_hidden(entry.name)
        )
    if not names:
        raise InputError(f"{folder}: holds no .npy files; remove the folder or download it again")
    return names


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _require_same(what: str, this: tuple[Path, int], that: tuple[Path, int]) -> None:
    if this[1] != that[1]:
        raise InputError(
            f"{this[0]}: {what} {this[1]}, but {that[0]} has {that[1]}; both must be of the same "
            "images"
        )


def _label_in(file: Path) -> int:
    array = _load(file)
    if array.shape != (1,):
        raise InputError(f"{file}: has shape {array.shape}, expected one label, shape (1,)")
    return int(array[0])


def _row_hash(token_AL: np.ndarray, label: int) -> str:
    return content_hash(token_AL.tobytes(), str(label).encode())


def _load(file: Path) -> np.ndarray:
    """An array of integers, as int64; never unpickles, and holds no more than the file does."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe may never end
            raise InputError(f"{file}: is no regular file; extract it again")
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, OverflowError, TypeError) as error:
        raise InputError(f"{file}: not a readable .npy array: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iu":
        found = getattr(array, "dtype", "an archive")
        raise InputError(f"{file}: holds {found}, expected integers; extract it again")
    if array.dtype == np.uint64 and array.size and array.max() >= 2**63:
        raise InputError(f"{file}: holds {array.max()}, which is neither token nor label")
    return array.astype(np.int64)
