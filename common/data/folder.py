"""A folder per class."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from common.data.config import ImagesConfig
from common.data.source import EncodedImages, require_classes
from common.errors import InputError

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


class FolderImages(EncodedImages):
    """`path/<class>/<file>`; classes and files in sorted order, as torchvision's ImageFolder."""

    def __init__(self, config: ImagesConfig, path: Path) -> None:
        self._config = config
        folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
        if not folders:
            raise InputError(f"{path}: holds no class folders; expected {path}/<class>/<image>")
        self._files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
            if not files:
                raise InputError(
                    f"{folder}: class folder without images ({', '.join(sorted(SUFFIXES))}); "
                    "add some or remove the folder"
                )
            self._files += files
            labels += [label] * len(files)
        self.classes = tuple(folder.name for folder in folders)
        self.label_N = torch.tensor(labels)
        self.name = str(path)
        require_classes(config, len(self.classes), self.name)

    def _encoded(self) -> Iterator[tuple[str, bytes]]:
        for file in self._files:
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise InputError(f"{file}: cannot be read: {error.strerror or error}") from None

    def _keep(self, rows: Sequence[int]) -> None:
        self._files = [self._files[row] for row in rows]
