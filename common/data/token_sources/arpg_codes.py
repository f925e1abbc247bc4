"""ARPG's codes of ImageNet (docs/backbones.md, "LlamaGen codes"): `{path}/{class}/*.npy`, (A, T).

Shape letters: A variants of an image, L slots (the files' T).
"""

from pathlib import Path
from typing import Self

import numpy as np
from pydantic import model_validator

from common.data.published_codes import Codes, CodesConfig, array_names, existing_folder, is_number
from common.data.token_rows import TokenRows
from common.errors import InputError
from common.images.config import ImagesConfig
from common.images.listing import is_hidden
from common.spec import SequenceSpec


class Config(CodesConfig):
    @model_validator(mode="after")
    def _codes_are_one_folder(self) -> Self:
        if len(self.paths) > 1:
            raise ValueError(f"arpg_codes are one folder, but paths has {len(self.paths)}")
        return self

    def open(self, images: ImagesConfig, shape: SequenceSpec) -> TokenRows:
        return ArpgCodes(self, shape)

    @classmethod
    def tiny(cls, folder: Path, shape: SequenceSpec) -> Self:
        for label in range(2):
            (folder / str(label)).mkdir()
            for index in range(2):
                token_AL = np.full((2, shape.length), label + index)
                np.save(folder / str(label) / f"{index}.npy", token_AL)
        return cls(paths=(folder,))


class ArpgCodes(Codes):
    """A folder per class, named by its number; files in sorted order."""

    def __init__(self, config: CodesConfig, shape: SequenceSpec) -> None:
        path = existing_folder(config.paths[0])
        folders = [
            entry for entry in path.iterdir() if entry.is_dir() and not is_hidden(entry.name)
        ]
        for folder in folders:
            if not is_number(folder.name):
                raise InputError(f"{folder}: no class number; expected {path}/<class number>/*.npy")
        if not folders:
            raise InputError(f"{path}: holds no class folders; expected <class number>/*.npy")
        folders.sort(key=lambda folder: int(folder.name))
        super().__init__(config, shape, [(f, name) for f in folders for name in array_names(f)])
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
