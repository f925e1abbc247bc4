"""What layouts of published codes have in common: numpy files, read as rows of a token dataset.

Files are small and many, so they are read by threads. Layouts are in common/data/token_sources.

Shape letters: A variants of an image, L slots (the files' T), n rows of a part.
"""

import copy
import os
import stat
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from common.data.token_rows import PixelEncoder, TokenRows, Watch
from common.data.token_source import TokenSourceConfig
from common.errors import InputError
from common.images.config import MOST_CLASSES
from common.images.contents import Reading, content_hash
from common.images.listing import is_hidden, printable
from common.spec import SequenceSpec

READERS = 8
"""Threads per process; they wait for the storage more than they compute."""
VARIANTS = 10
"""Per image in a folder of published codes: ten crops."""


class Codes(TokenRows):
    """A finite, ordered set of encoded images in files of their own."""

    variants: int

    def __init__(
        self, config: TokenSourceConfig, shape: SequenceSpec, items: Sequence[Any]
    ) -> None:
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

    def read(
        self,
        encoder: PixelEncoder | None = None,
        reading: Reading | None = None,
        watch: Watch | None = None,
    ) -> tuple[Tensor, Tensor]:
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
        array = load_array(file)
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
        shape = load_array(file).shape
        if len(shape) != len(leading) + 2 or shape[: len(leading)] != leading or not shape[-2]:
            expected = "".join(f"{size}, " for size in leading)
            raise InputError(f"{file}: has shape {shape}, expected ({expected}variants, tokens)")
        if shape[-1] != self._shape.length:
            raise InputError(
                f"{file}: holds {shape[-1]} tokens per image, but the tokenizer makes "
                f"{self._shape.length}; set images.size to the size that was encoded"
            )
        return shape[-2]


class CodesConfig(TokenSourceConfig):
    """A kind that reads files of codes: `paths` name them."""

    @model_validator(mode="after")
    def _paths_are_given(self) -> Self:
        if not self.paths:
            raise ValueError(f"kind is {self.kind}, so paths must name the folders of codes")
        return self

    @property
    def variants(self) -> int:
        return VARIANTS * len(self.paths)


def existing_folder(path: Path) -> Path:
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; tokens.paths must name folders of codes")
    return path


def array_names(folder: Path) -> list[str]:
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


def is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and str(int(name)) == name


def _row_hash(token_AL: np.ndarray, label: int) -> str:
    return content_hash(token_AL.tobytes(), str(label).encode())


_HEADERS = Lock()
"""Of .npy files: numpy parses them as Python, which fails now and then in several threads at a time
(SystemError: AST constructor recursion depth mismatch, seen with Python 3.11)."""


def load_array(file: Path) -> np.ndarray:
    """An array of integers, as int64; never unpickles, and holds no more than the file does."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe may never end
            raise InputError(f"{file}: is no regular file; extract it again")
        with _HEADERS:
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
