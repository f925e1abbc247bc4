"""The rows that a token source opens: images that become tokens here, or tokens that exist.

Shape letters: A variants of an image, B batch, C channels, H height, W width, L slots, n rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from torch import Tensor

from common.images.contents import Reading

Watch = Callable[[int], None]
"""Hears how many rows of a part are done."""


class PixelEncoder(Protocol):
    """The run's tokenizer on its device, for sources that begin with pixels."""

    def encode(self, pixel_BCHW: Tensor) -> Tensor:
        """token_BL (int64, on the CPU) of uint8 images of the run's size and channels."""
        ...

    def measure(self, pixel_BCHW: Tensor, token_BL: Tensor) -> None:
        """Count how well these tokens reconstruct these images, for the PSNR that is told; a few
        images of a part are enough, and a source without pixels calls it never."""
        ...


class TokenRows(ABC):
    """A finite, ordered set of rows (an image each); travels to the processes that read parts."""

    name: str
    """Where they are from, for messages."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in order of their label; None where there are only numbers."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def subset(self, rows: range) -> Self:
        """A run of rows; small to send to another process."""

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """Those that say which rows there are; none for what lies in no file."""

    @abstractmethod
    def contents(self) -> Iterator[tuple[str, str]]:
        """(where, hash of the content) of every row: the hashes that `read` collects."""

    @abstractmethod
    def read(self, encoder: PixelEncoder, reading: Reading, watch: Watch) -> tuple[Tensor, Tensor]:
        """(token_nAL, label_n), integers by grid position and int64 labels, in the rows' order.

        `reading` collects the files before they are opened and a hash per row, by which an
        interrupted command knows its finished parts again.

        Raises:
            InputError: a row is missing, damaged or out of range; the message names the file.
        """

    def found(self) -> list[str]:
        """Lines about what was found and left out, for the user."""
        return []

    def layout(self) -> bytes:
        """What decides the parts beside their contents and the config: labels known beforehand."""
        return b""

    def facts(self, hashes: Iterable[str]) -> dict[str, Any]:
        """What the token file keeps of the rows, whose contents have these hashes."""
        return {}
