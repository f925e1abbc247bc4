"""A folder per class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.images.classes import assign, in_order
from common.images.config import ImagesConfig, Split
from common.images.contents import Reading
from common.images.listing import (
    Findings,
    entries,
    files_below,
    is_folder,
    is_hidden,
    printable,
    read_file,
    suffix_of,
)
from common.images.pixels import suffixes
from common.images.source import EncodedImages
from common.images.splits import refuse_splits_as_classes


class FolderImages(EncodedImages):
    """`root/<class>/<file>`, at any depth below the class; several roots add up.

    Classes are in torchvision's order, files of a class sorted by the parts of their paths.
    """

    def __init__(self, config: ImagesConfig, roots: Sequence[Path], split: Split) -> None:
        self._config = config
        self.found = Findings()
        self.name = ", ".join(printable(root) for root in roots)
        folders: dict[str, list[tuple[Path, Path]]] = {}
        for root in roots:
            for name in self._class_folders(root, split):
                folders.setdefault(name, []).append((root, root / name))
        names = in_order(list(folders), config, self.name, self.found)
        self._files: list[Path] = []
        rows: list[int] = []
        for row, name in enumerate(names):
            files = [file for root, folder in folders[name] for file in self._images(root, folder)]
            if not files:
                raise InputError(
                    f"{printable(folders[name][0][1])}: class folder without images "
                    f"({', '.join(sorted(suffixes()))}); {self._but()}add some or remove the folder"
                )
            self._files += files
            rows += [row] * len(files)
        self.classes, self.label_N = assign(config, names, np.asarray(rows), self.name, self.found)

    def _class_folders(self, root: Path, split: Split) -> list[str]:
        """Names of class folders; what else lies beside them is noted."""
        if not root.is_dir():
            hint = "; set images.kind=parquet" if root.suffix == ".parquet" else ""
            raise InputError(f"{printable(root)}: is no folder of class folders{hint}")
        names, beside = [], []
        for entry in entries(root):
            if is_hidden(entry.name):
                self.found.left_out.add("hidden", entry.name)
            elif is_folder(entry):
                names.append(entry.name)
            else:
                beside.append(entry.name)
        if not names:
            raise InputError(
                f"{printable(root)}: holds no class folders; expected "
                f"{printable(root)}/<class>/<image>{_hint(root, beside)}"
            )
        for name in beside:
            self.found.left_out.add("beside the class folders", name)
        refuse_splits_as_classes(root, names, split)
        return names

    def _images(self, root: Path, folder: Path) -> list[Path]:
        known, found = suffixes(), []
        for parts in files_below(folder, self.found.left_out, root=root):
            reason = suffix_of(parts[-1])
            if reason in known:
                found.append(parts)
            else:
                self.found.left_out.add(reason, "/".join([folder.name, *parts]))
        return [folder.joinpath(*parts) for parts in sorted(found)]

    def _but(self) -> str:
        left_out = str(self.found.left_out)
        return f"left out were {left_out}; " if left_out else ""

    def files(self) -> Sequence[Path]:
        return self._files

    def _encoded(self, reading: Reading) -> Iterator[tuple[str, bytes]]:
        for file in self._files:
            reading.opens(file)
            yield printable(file), read_file(file)

    def _keep(self, rows: Sequence[int]) -> None:
        self._files = [self._files[row] for row in rows]


def _hint(root: Path, beside: Sequence[str]) -> str:
    kinds = {suffix_of(name) for name in beside}
    if ".parquet" in kinds:
        return "; set images.kind=parquet for its .parquet files"
    if kinds & suffixes():
        return f"; move its images into a folder such as {printable(root / 'all')}"
    return ""
